"""Estimators of token credit by name; a user's own is loaded from a Python file."""

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.base.user_files import with_its_folder
from openrlhf_ktae.credit.batch import NEEDS, CreditBatch, TokenCredit

CUSTOM = "custom"
"""`--advantage_estimator custom`: the estimator that `--algo.credit.file` registers."""
Compute = Callable[[CreditBatch, Any], TokenCredit]


@dataclass(frozen=True)
class NoOptions:
    """For estimators without options."""


@dataclass(frozen=True)
class Estimator:
    """One way to assign credit to tokens."""

    name: str
    compute: Compute
    options: type
    """A frozen dataclass with defaults; becomes `--algo.NAME.*`."""
    needs: tuple[str, ...]
    """Names in `NEEDS`: inputs in addition to ids, verdicts and rollout-level advantages."""
    by_verdict: bool
    """Whether it uses verdicts; the others use only the rollouts' advantages."""
    across_groups: bool = False
    """Whether the credit of a group depends on other groups of the batch."""

    @property
    def metrics_prefix(self) -> str:
        """Prefix of its metrics' names, before `/`; KTAE has its own prefix since it came first."""
        return "ktae" if self.name == "ktae" else "credit"

    def __call__(self, batch: CreditBatch, options: Any = None) -> TokenCredit:
        """Return the credit of a batch.

        Raises ValueError if the batch lacks an input that the estimator needs, or the result does not have the shape
        and type that `TokenCredit` documents.
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
        kind, device = found.added_N.dtype, found.added_N.device
        if kind != torch.float32 or device.type != "cpu":
            raise ValueError(f"added_N is {kind} on {device}: return float32 on the CPU (batch.on_tokens gives it)")
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
    """Register a function as an estimator: `compute(batch, options) -> TokenCredit`.

    Raises ValueError if the name is taken, a need is unknown, or `options` is not a dataclass.
    """
    if not (isinstance(options, type) and is_dataclass(options)):
        raise ValueError(f"options={options!r}: give a frozen dataclass, with a default for each field")
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
    """Return the estimator called `name`, or the one in `file` if it is `custom`; None for an empty name."""
    if name == CUSTOM:
        return load_estimator(str(file))
    return _known[name] if name else None


def options_from(one: Estimator, text: str) -> Any:
    """Return the options of an estimator from `text`, a JSON object; an empty text gives the defaults.

    Raises ValueError if the text is not a JSON object, an option is unknown, or the estimator refuses a value.
    """
    given = json.loads(text or "{}")
    if not isinstance(given, dict):
        raise ValueError(f"{text} is not a JSON object")
    names = [field.name for field in fields(one.options)]
    if unknown := set(given) - set(names):
        raise ValueError(f"{min(unknown)}: {one.name} has no such option; there are {', '.join(names) or 'none'}")
    return one.options(**given)


def load_estimator(path: str | Path) -> Estimator:
    """Run a Python file and return the estimator that it registers.

    Raises:
        ValueError: the file registers no estimator, or several.
        Exception: any error that the file raises.
    """
    before = dict(_known)
    try:
        with with_its_folder(path):
            runpy.run_path(str(path))
        new = [one for name, one in _known.items() if name not in before]
    finally:
        _known.clear()
        _known.update(before)
    if len(new) != 1:
        raise ValueError(f"it registers {len(new)} estimators; one function needs the decorator register(NAME)")
    return new[0]
