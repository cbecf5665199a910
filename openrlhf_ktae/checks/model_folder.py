"""Does a model exist, complete, and of a kind that can do its job? Read from its files; nothing is loaded."""

import ast
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from openrlhf_ktae.base.host import package_folder
from openrlhf_ktae.base.model_config import read_config, text_part
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short
from openrlhf_ktae.data import hub
from openrlhf_ktae.processes.remote_code import OPTION

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
# Transformers' tables of models are literals in its source, which is parsed: the import takes seconds.
GENERATORS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
SOURCES = ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py")
# Configuration entries that code divides by or indexes with; a list has one entry per layer.
SIZES = tuple(
    "hidden_size num_attention_heads num_key_value_heads num_hidden_layers head_dim vocab_size "
    "max_position_embeddings n_embd n_head n_layer n_positions".split()
)


def model_problems(option: str, name: str, trusted: bool, generates: bool) -> Iterator[str]:
    """Yield the problems of the model `name`, the value of `option`; a model that `generates` must have a tokenizer."""
    flag = f"{option} {name}"
    if os.path.isdir(name):
        yield from _folder(option, Path(name), trusted, generates)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        yield f"{flag}: no such folder, and not a model name on the Hugging Face Hub (OWNER/NAME)"
    elif missing := hub.missing(name):
        yield f"{flag}: no such folder, and {missing}"
    elif not trusted:
        yield from code_problems(option, name)


def code_problems(flag: str, name: str) -> Iterator[str]:
    """Yield the reason if the model `name`, the value of the option `flag`, cannot load without its own code."""
    config = read_config(name)
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        yield (
            f"{flag} {name}: its model type {config.get('model_type')} is defined by Python code in the model folder, "
            f"which does not run by default; read that code, then give {OPTION} true"
        )


def _folder(option: str, folder: Path, trusted: bool, generates: bool) -> Iterator[str]:
    flag = f"{option} {folder}"
    if not (folder / "config.json").is_file():
        yield f"{flag}: the folder has no config.json, so it is not a transformers model"
        return
    try:
        config = read_config(str(folder))
    except (ValueError, OSError) as error:
        yield f"{flag}: its config.json cannot be read ({short(error)}); copy the model again"
        return
    for part in (config, text_part(config)) if "text_config" in config else (config,):
        for name, value in part.items():
            if name in SIZES and value is not None and not _is_size(value):
                yield f"{flag}: its config.json has {name} {json.dumps(value)}, not a valid size; copy the model again"
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        yield f"{flag}: the folder has no weights ({', '.join(WEIGHTS)}); copy them too"
    for file, reason in _damaged_files(folder):
        yield f"{flag}: its {file} {reason}; copy it again"
    if generates and not any((folder / file).is_file() for file in TOKENIZERS):
        yield f"{flag}: the folder has no tokenizer ({', '.join(TOKENIZERS)}); copy it too"
    if not trusted:
        code = list(code_problems(option, str(folder)))
        yield from code or _kind_problems(flag, config, generates)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _damaged_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and defect of each damaged or missing file."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError:
            yield path.name, "is incomplete"
        except OSError as error:
            yield path.name, f"cannot be read ({short(error)})"
    for path in sorted(folder.glob("*.bin")):
        if path.stat().st_size == 0:
            yield path.name, "is empty"
    for name in ("tokenizer.json", "tokenizer_config.json", INDEX):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            yield name, f"cannot be read ({short(error)})"
            continue
        shards = content.get("weight_map", {}) if name == INDEX and isinstance(content, dict) else {}
        for shard in sorted({str(shard) for shard in shards.values()}):
            if not (folder / shard).is_file():
                yield shard, f"is named by {INDEX} but missing"


def _kind_problems(flag: str, config: Mapping[str, Any], generates: bool) -> Iterator[str]:
    """Yield the reason if transformers has no class, or no text-generating class, for the model of `config`."""
    kind, named = config.get("model_type"), config.get("architectures")
    if not kind:
        yield f"{flag}: its config.json has no model_type; copy the model again"
        return
    if _sources() and not any(f'"{kind}"' in text for text in _sources().values()):
        yield f"{flag}: the installed transformers does not know its model type {kind}; give another model"
        return
    table = _generators()
    classes = {name for names in table.values() for name in names}
    if not generates or not table:
        return
    wrong = isinstance(named, list) and named and not classes & set(map(str, named))
    if kind not in table or wrong:
        what = ", ".join(map(str, named)) if wrong and isinstance(named, list) else f"model type {kind}"
        yield f"{flag}: {what} does not generate text; give a causal language model"


@cache
def _generators() -> dict[str, tuple[str, ...]]:
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
