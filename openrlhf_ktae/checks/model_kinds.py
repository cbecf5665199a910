"""Which model types transformers supports, and which of them generate text: read from its source without importing it.

The import takes seconds, too long for a refusal. The tables of its auto classes are literals, so parsing is enough.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.host import package_folder

GENERATORS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
SOURCES = ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py")


def kind_problems(flag: str, config: Mapping[str, Any], generates: bool) -> Iterator[str]:
    """Yield the reason if transformers has no class, or no text-generating class, for the model of `config`."""
    kind, named = config.get("model_type"), config.get("architectures")
    if not kind:
        yield f"{flag}: its config.json has no model_type; copy the model again"
        return
    if _sources() and not any(f'"{kind}"' in text for text in _sources().values()):
        yield f"{flag}: the installed transformers does not know its model type {kind}; give another model"
        return
    table = generators()
    classes = {name for names in table.values() for name in names}
    if not generates or not table:
        return
    wrong = isinstance(named, list) and named and not classes & set(map(str, named))
    if kind not in table or wrong:
        what = ", ".join(map(str, named)) if wrong and isinstance(named, list) else f"model type {kind}"
        yield f"{flag}: {what} does not generate text; give a causal language model"


@cache
def generators() -> dict[str, tuple[str, ...]]:
    """Return model type -> names of its text-generating classes."""
    found: dict[str, tuple[str, ...]] = {}
    for node in ast.parse(_sources().get(SOURCES[-1], "")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in GENERATORS:
            pairs = ast.literal_eval(node.value.args[0]) if isinstance(node.value, ast.Call) else []
            for kind, names in pairs:
                found[kind] = (*found.get(kind, ()), *((names,) if isinstance(names, str) else names))
    return found


@cache
def _sources() -> dict[str, str]:
    folder = (package_folder("transformers") or Path()) / "models" / "auto"
    return {name: (folder / name).read_text(encoding="utf-8") for name in SOURCES if (folder / name).is_file()}
