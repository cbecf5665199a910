"""Does a model exist, complete, and of a kind that can do its job? Read from its files; nothing is loaded."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.model_config import read_config, text_part
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short
from openrlhf_ktae.checks.model_kinds import kind_problems
from openrlhf_ktae.data import hub
from openrlhf_ktae.processes.remote_code import OPTION

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"
HEADER_BYTES = 8  # a safetensors file begins with the length of its header
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
        yield from code or kind_problems(flag, config, generates)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _damaged_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and defect of each damaged or missing file."""
    for path in sorted(folder.glob("*.safetensors")):
        if not _is_complete(path):
            yield path.name, "is incomplete"
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


def _is_complete(path: Path) -> bool:
    """Return whether a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_BYTES), "little")
        if length > size - HEADER_BYTES:
            return False
        try:
            header = parse_json(file.read(length).decode())
            ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, AttributeError, TypeError):
            return False
    return size == HEADER_BYTES + length + max(ends, default=0)
