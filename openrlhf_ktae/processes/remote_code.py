"""Code that a model folder or repository brings along (`auto_map`) does not run unless `--model.trust_remote_code`.

The host passes `trust_remote_code=True` in nine places (docs/reliability.md lists them) and has no option for it. All
of them, and vLLM's own, end in one module of transformers, so the refusal is there, in every process of a run: the
driver, Ray's workers (through the worker setup hook) and vLLM's processes (through its plugins). A variable of the
environment says that the run refuses; without it nothing is changed: vLLM loads its plugins for other programs too.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from wrapt import register_post_import_hook

OPTION = "--model.trust_remote_code"
VARIABLE = "OPENRLHF_KTAE_REMOTE_CODE"
REFUSED = "refused"
SEAM = "transformers.dynamic_module_utils"
_closed = False


class RemoteCodeRefused(ValueError):
    """Something wanted to import Python code from a model folder."""


def environment(trusted: bool) -> dict[str, str]:
    """Return the variables that close the seam in processes to come."""
    return {} if trusted else {VARIABLE: REFUSED}


def close_if_refused() -> None:
    """Close the seam in this process where the environment says so; a second call does nothing."""
    global _closed
    if _closed or os.environ.get(VARIABLE) != REFUSED:
        return
    _closed = True
    register_post_import_hook(refuse, SEAM)


def refuse(module: Any) -> None:
    """Answer every question whether to trust with no, and import nothing if somebody does not ask.

    A model whose class transformers has itself loads without its own code. Modules that were loaded before, as in
    vLLM's processes, hold the functions under their own names.
    """
    resolve, load = module.resolve_trust_remote_code, module.get_class_in_module

    def resolve_trust_remote_code(trust_remote_code: Any, *args: Any, **kwargs: Any) -> bool:
        return bool(resolve(False, *args, **kwargs))

    def get_class_in_module(class_name: str, module_path: Any, **_: Any) -> NoReturn:
        raise RemoteCodeRefused(
            f"{module_path}: {class_name} is code that comes with a model, and {OPTION} is false. Read that code, then "
            f"give {OPTION} true"
        )

    for old, new in ((resolve, resolve_trust_remote_code), (load, get_class_in_module)):
        for holder in list(sys.modules.values()):
            for name in [name for name, value in vars(holder).items() if value is old] if _has_names(holder) else []:
                setattr(holder, name, new)
    module.resolve_trust_remote_code, module.get_class_in_module = resolve_trust_remote_code, get_class_in_module


def _has_names(holder: Any) -> bool:
    return str(getattr(holder, "__name__", "")).startswith(("transformers", "vllm")) and hasattr(holder, "__dict__")
