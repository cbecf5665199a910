"""Estimators of token credit by name; a user's own comes from a Python file."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.credit.batch import NEEDS, CreditBatch, TokenCredit

CUSTOM = "custom"
"""`--advantage_estimator custom`: the one that `--algo.credit.file` registers."""
Compute = Callable[[CreditBatch, Any], TokenCredit]


@dataclass(frozen=True)
class NoOptions:
    """For estimators without options."""


@dataclass(frozen=True)
class Estimator:
    """One way to give tokens credit."""

    name: str
    compute: Compute
    options: type
    """A frozen dataclass with defaults; becomes `--algo.NAME.*`."""
    needs: tuple[str, ...]
    """Of `NEEDS`: what the batch must have beyond ids, verdicts and rollout-level advantages."""
    by_verdict: bool
    """Whether it reads who is correct; others read the rollouts' advantages."""
    across_groups: bool = False
    """Whether the credit of a group depends on the others of the batch."""

    @property
    def metrics_prefix(self) -> str:
        """What names of its metrics begin with, before `/`: KTAE's were there before the others."""
        return "ktae" if self.name == "ktae" else "credit"

    def __call__(self, batch: CreditBatch, options: Any = None) -> TokenCredit:
        """Return the credit of a batch.

        Raises:
            ValueError: the batch lacks what the estimator needs, or the result has another shape than its tokens.
        """
        for name in self.needs:
            batch.needed(name)
        found = self.compute(batch, self.options() if options is None else options)
        if not isinstance(found, TokenCredit):
            raise ValueError(f"{self.name} returns {type(found).__name__}: return a TokenCredit")
        for name, values_N in {"added_N": found.added_N, **found.figures}.items():
            if not isinstance(values_N, torch.Tensor) or values_N.shape != batch.mask_N.shape:
                shape = tuple(getattr(values_N, "shape", ()))
                raise ValueError(f"{name} has shape {shape}: return one for each token, {tuple(batch.mask_N.shape)}")
        return found


_known: dict[str, Estimator] = {}


def register(
    name: str,
    *,
    options: type = NoOptions,
    needs: tuple[str, ...] = (),
    by_verdict: bool = False,
    across_groups: bool = False,
) -> Callable[[Compute], Compute]:
    """Make a function an estimator: `compute(batch, options) -> TokenCredit`.

    Raises:
        ValueError: the name is taken, or a need is none.
    """
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"needs {min(unknown)!r}: no such input; there are {', '.join(NEEDS)}")

    def registered(compute: Compute) -> Compute:
        if name in _known or name == CUSTOM:
            raise ValueError(f"an estimator is called {name!r} already; give it another name")
        _known[name] = Estimator(name, compute, options, needs, by_verdict, across_groups)
        return compute

    return registered


def estimators() -> dict[str, Estimator]:
    """Return all estimators by name."""
    return dict(_known)


def chosen_estimator(name: str, file: str | None = None) -> Estimator | None:
    """Return the estimator of a run: by name, that of `file` for `custom`, none for an empty name."""
    if name == CUSTOM:
        return load_estimator(str(file))
    return _known[name] if name else None


def options_from(one: Estimator, text: str) -> Any:
    """Return the options of an estimator from `text`, a JSON object; its defaults from an empty one.

    Raises:
        ValueError: it is no such object, names an option that the estimator does not have, or has a refused value.
    """
    given = json.loads(text or "{}")
    if not isinstance(given, dict):
        raise ValueError(f"{text} is not a JSON object")
    names = [field.name for field in fields(one.options)]
    if unknown := set(given) - set(names):
        raise ValueError(f"{min(unknown)}: {one.name} has no such option; there are {', '.join(names) or 'none'}")
    return one.options(**given)


def load_estimator(path: str | Path) -> Estimator:
    """Run a Python file, which registers one estimator, and return it.

    Raises:
        ValueError: it registers none, or several.
        Exception: whatever the file raises.
    """
    before = dict(_known)
    try:
        runpy.run_path(str(path))
        new = [one for name, one in _known.items() if name not in before]
    finally:
        _known.clear()
        _known.update(before)
    if len(new) != 1:
        raise ValueError(f"it registers {len(new)} estimators; one function needs the decorator register(NAME)")
    return new[0]
