"""Token credit for other trainers. Each module needs its trainer's library, and none needs OpenRLHF."""

from collections.abc import Callable, Sequence

import torch

from openrlhf_ktae.base.text import short
from openrlhf_ktae.credit import Estimator, estimators, tokens_in_prompt

NO_TOKEN = -1  # in place of padding
Values = Callable[[list[int], list[int]], Sequence[float]]
"""A user's function: ids of a prompt and of a response -> for each token of the response the mean score of responses
that begin with all tokens up to it, NaN where it is not known. Values at tokens of tools are not used."""


def chosen(option: str, name: str, values: Values | None, where: str) -> Estimator:
    """Return the estimator called `name`, the value of `option`.

    Raises ValueError if there is none, or if it needs values of prefixes and no function gives them; `where` says where
    to give one.
    """
    one = estimators().get(name)
    if one is None:
        raise ValueError(f"{option}={name}: no such estimator; give one of {', '.join(estimators())}")
    if "values" in one.needs and values is None:
        raise ValueError(
            f"{option}={name}: needs values of prefixes, for which another trainer samples no continuations; give a "
            f"function that returns them, as {where}"
        )
    return one


def in_prompt(ids_BT: torch.Tensor, prompts_BP: torch.Tensor, mask_BP: torch.Tensor) -> torch.Tensor:
    """Return 1.0 where an id of a response is also in its prompt, else 0.0: float32 (B, T). The mask excludes padding.

    The mask may also cover the responses after the prompts, as verl's does.
    """
    width = prompts_BP.size(1)
    prompts_BP = prompts_BP.masked_fill(mask_BP[:, :width] == 0, NO_TOKEN)
    answered = torch.arange(width + ids_BT.size(1)) >= width
    rows = torch.cat([prompts_BP, ids_BT], dim=1)
    return tokens_in_prompt(rows, answered.expand_as(rows))[:, width:]


def given_values(
    values: Values, ids_BT: torch.Tensor, prompts_BP: torch.Tensor, mask_BP: torch.Tensor, acted_BT: torch.Tensor
) -> torch.Tensor:
    """Return the values that `values` gives for responses, float32 (B, T), NaN after them. Masks as in `in_prompt`.

    A response ends with its last action; an empty one is skipped. Raises ValueError if `values` does not return one
    number for each token.
    """
    found = torch.full(ids_BT.shape, torch.nan, device=ids_BT.device)
    for row, (ids_T, ids_P, seen_P, acted_T) in enumerate(zip(ids_BT, prompts_BP, mask_BP, acted_BT, strict=True)):
        if not acted_T.any():
            continue
        length = int(acted_T.nonzero().max()) + 1
        told = values(ids_P[seen_P[: len(ids_P)] == 1].tolist(), ids_T[:length].tolist())
        try:
            made = torch.tensor([float(value) for value in told])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"values returned {short(repr(told))} ({error}); return a number for each token, or NaN"
            ) from None
        if len(made) != length:
            raise ValueError(f"values returned {len(made)} numbers for {length} tokens; return one for each, or NaN")
        found[row, :length] = made
    return found
