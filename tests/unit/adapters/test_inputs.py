"""What both adapters share, without the library of either."""

import pytest
import torch

from openrlhf_ktae.adapters import given_values, in_prompt


def test_padding_is_no_part_of_a_prompt():
    """The padding's id 0 is in both responses. The second mask also covers the response, as verl's does."""
    prompts, ids = torch.tensor([[0, 0, 7, 8], [0, 5, 6, 7]]), torch.tensor([[7, 0, 5], [7, 0, 5]])
    seen = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    for mask in (seen, torch.cat([seen, torch.ones(2, 3, dtype=torch.long)], dim=1)):
        assert in_prompt(ids, prompts, mask).tolist() == [[1, 0, 0], [1, 0, 1]]


def test_values_are_those_of_prompts_and_responses_without_padding():
    """The second response has a tool's token, which is not an action; the third is empty."""
    prompts, ids = torch.tensor([[0, 7, 8], [5, 6, 7], [0, 0, 7]]), torch.tensor([[7, 0, 0], [7, 0, 5], [0, 0, 0]])
    seen, acted = prompts != 0, torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    asked = []

    def values(prompt, response):
        asked.append((prompt, response))
        return [0.5 * len(prompt)] * len(response)

    nan = float("nan")
    expected = torch.tensor([[1, nan, nan], [1.5, 1.5, 1.5], [nan, nan, nan]])
    torch.testing.assert_close(given_values(values, ids, prompts, seen, acted), expected, equal_nan=True)
    assert asked == [([7, 8], [7]), ([5, 6, 7], [7, 0, 5])]


@pytest.mark.parametrize(
    ("told", "said"),
    [([1.0], "1 numbers for 3 tokens"), (None, "None"), ([None] * 3, "None"), (torch.ones(3, 2), "tensor")],
)
def test_values_that_are_not_one_number_a_token_are_refused(told, said):
    ids, seen = torch.tensor([[7, 0, 5]]), torch.tensor([[1, 1, 1]])
    with pytest.raises(ValueError, match=f"values returned .*{said}.*; return (one|a number) for each"):
        given_values(lambda *_: told, ids, ids, seen, seen)
