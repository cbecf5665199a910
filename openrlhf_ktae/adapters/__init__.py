"""Token credit for other trainers. Each module needs its trainer's library, and none needs OpenRLHF."""

import torch

from openrlhf_ktae.credit import Estimator, estimators, tokens_in_prompt

NO_TOKEN = -1  # in place of padding


def chosen(option: str, name: str) -> Estimator:
    """Return the estimator called `name`, the value of `option`.

    Raises ValueError if there is none, or if it needs `values`, the only input that other trainers cannot give.
    """
    usable = [known for known, one in estimators().items() if "values" not in one.needs]
    if name in usable:
        return estimators()[name]
    why = "a step of another trainer cannot sample and judge continuations" if name in estimators() else "no such one"
    raise ValueError(f"{option}={name}: {why}; give one of {', '.join(usable)}")


def in_prompt(ids_BT: torch.Tensor, prompts_BP: torch.Tensor, mask_BP: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where an id of a response is also in its prompt, else 0.0: float32 (B, T). The mask excludes padding.

    The mask may also cover the responses after the prompts, as verl's does.
    """
    width = prompts_BP.size(1)
    prompts_BP = prompts_BP.masked_fill(mask_BP[:, :width] == 0, NO_TOKEN)
    answered = torch.arange(width + ids_BT.size(1)) >= width
    rows = torch.cat([prompts_BP, ids_BT], dim=1)
    return tokens_in_prompt(rows, answered.expand_as(rows))[:, width:]
