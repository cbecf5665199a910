"""Small models in DeepSpeed, and what their weights are."""

from __future__ import annotations

import torch


def initialized(model, stage, **config):
    """Return the model in an engine of ZeRO `stage` with torch's AdamW."""
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
