"""Small models in DeepSpeed engines, and reading their weights."""

from __future__ import annotations

import torch


def initialized(model, stage, **config):
    """Return a DeepSpeed engine for the model, with ZeRO `stage` and torch's AdamW."""
    import deepspeed

    whole = {"train_batch_size": 1, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    made, *_ = deepspeed.initialize(model=model, config=whole | config, optimizer=optimizer)
    return made


def weights(made):
    import deepspeed

    parameters = list(made.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([p.detach().float().flatten().clone() for p in parameters])
