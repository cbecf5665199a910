"""What a rank adds to its part of a checkpoint: shares of averaged weights."""

from __future__ import annotations

import torch


def test_shares_of_parameters_are_what_zero_left_of_them(host, tmp_path):
    from openrlhf_ktae.trainer.ray.checkpointing import load_shares, shares

    def model():
        torch.manual_seed(0)
        made = torch.nn.Linear(3, 2)
        made.weight.ds_tensor = torch.arange(3.0)  # under ZeRO-3 a rank has a slice; the parameter itself is empty
        made.weight.data = torch.empty(0)
        return made

    before = model()
    before.weight.ds_tensor += 5
    torch.nn.init.constant_(before.bias, 7)
    torch.save(shares(before), tmp_path / "share.pt")
    after = model()
    load_shares(after, torch.load(tmp_path / "share.pt", weights_only=True))
    assert after.weight.ds_tensor.tolist() == [5, 6, 7]
    assert after.bias.tolist() == [7, 7]
