"""What both adapters share, without the library of either."""

import torch

from openrlhf_ktae.adapters import in_prompt


def test_padding_is_no_part_of_a_prompt():
    """The padding's id 0 is in both responses. The second mask also covers the response, as verl's does."""
    prompts, ids = torch.tensor([[0, 0, 7, 8], [0, 5, 6, 7]]), torch.tensor([[7, 0, 5], [7, 0, 5]])
    seen = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    for mask in (seen, torch.cat([seen, torch.ones(2, 3, dtype=torch.long)], dim=1)):
        assert in_prompt(ids, prompts, mask).tolist() == [[1, 0, 0], [1, 0, 1]]
