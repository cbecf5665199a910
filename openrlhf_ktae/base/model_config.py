"""Read `config.json` of a model without loading the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.plain_json import parse_json


def read_config(name: str) -> dict[str, Any]:
    """Return `config.json` of a model folder or of a cached Hub model; empty if there is none.

    Raises ValueError if the file is not a JSON object.
    """
    path: Any = Path(name) / "config.json"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache

        try:
            path = try_to_load_from_cache(name, "config.json")
        except ValueError:  # not a valid Hub name
            return {}
        if not isinstance(path, str):
            return {}
    found = parse_json(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def config_of(model: str | None) -> dict[str, Any]:
    """Return the language-model part of a model's `config.json`; empty if it cannot be read."""
    try:
        return text_part(read_config(model)) if model else {}
    except (ValueError, OSError):
        return {}  # `model_problems` reports the error


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that describes the language model; vision-language models nest it in `text_config`."""
    inner = config.get("text_config")
    return dict(inner if isinstance(inner, Mapping) else config)


def head_size(config: Mapping[str, Any]) -> int | None:
    """Return the size of an attention head, also under GPT-2's key names; None if it is unknown."""
    hidden = config.get("hidden_size") or config.get("n_embd")
    heads = config.get("num_attention_heads") or config.get("n_head")
    size = config.get("head_dim")
    if isinstance(size, int):
        return size
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
