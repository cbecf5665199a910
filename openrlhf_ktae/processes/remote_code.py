"""Refuse to run code shipped with a model (`auto_map`) unless `--model.trust_remote_code` is set.

The host passes `trust_remote_code=True` in nine places (docs/reliability.md lists them) and has no option for it. Those
that load models, and vLLM's, go through one transformers module; `datasets` ignores it. The module is patched in every
process of a run: the driver, Ray's workers (worker setup hook) and vLLM's processes (plugin). An environment variable
turns the refusal on. Without it nothing changes, because vLLM loads its plugins for other programs too.
"""

import os
import sys
from typing import Any, NoReturn

from wrapt import register_post_import_hook

from openrlhf_ktae.base.errors import Refusal

OPTION = "--model.trust_remote_code"
VARIABLE = "OPENRLHF_KTAE_REMOTE_CODE"
REFUSED = "refused"
SEAM = "transformers.dynamic_module_utils"
_closed = False


def environment(trusted: bool) -> dict[str, str]:
    """Return the environment variables that make child processes refuse remote code."""
    return {} if trusted else {VARIABLE: REFUSED}


def close_if_refused() -> None:
    """Patch transformers in this process if the environment says so; a second call does nothing."""
    global _closed
    if _closed or os.environ.get(VARIABLE) != REFUSED:
        return
    _closed = True
    register_post_import_hook(refuse, SEAM)


def refuse(module: Any) -> None:
    """Make transformers never trust remote code, and refuse imports that do not check for trust.

    A model whose class is part of transformers still loads, without its own code. Modules imported earlier, as in
    vLLM's processes, have their own references to the functions, so these are replaced too.
    """
    resolve, load = module.resolve_trust_remote_code, module.get_class_in_module

    def resolve_trust_remote_code(trust_remote_code: Any, *args: Any, **kwargs: Any) -> bool:
        return bool(resolve(False, *args, **kwargs))

    def get_class_in_module(class_name: str, module_path: Any, **_: Any) -> NoReturn:
        raise Refusal(
            f"{module_path}: {class_name} is code that comes with a model, and {OPTION} is false. Read that code, then "
            f"give {OPTION} true"
        )

    named = [one for one in list(sys.modules.values()) if hasattr(one, "__dict__") and hasattr(one, "__name__")]
    holders = [one for one in named if str(one.__name__).startswith(("transformers", "vllm"))]
    for old, new in ((resolve, resolve_trust_remote_code), (load, get_class_in_module)):
        for holder in holders:
            for name in [name for name, value in vars(holder).items() if value is old]:
                setattr(holder, name, new)
    module.resolve_trust_remote_code, module.get_class_in_module = resolve_trust_remote_code, get_class_in_module
