"""Can the model's config, generation config and tokenizer be loaded and saved, and do all tokens have embeddings?

They are read as the run will read them, written to a temporary folder and read again, before weights load. transformers
writes more strictly than it reads, so without this check a run could train and then fail to save.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.batches import models
from openrlhf_ktae.base.model_config import config_of
from openrlhf_ktae.base.text import short
from openrlhf_ktae.checkpoint.model_files import GENERATION_CONFIG, make_savable

SHOWN = 3  # tokens without an embedding row


class Broken(ValueError):
    """A part of the model cannot be read or written; the message says why."""


def round_trip(args: SimpleNamespace) -> tuple[list[str], list[str]]:
    """Return problems, each with the way out, and notes on repairs that saving will make."""
    name, trusted = args.actor.model_name_or_path, args.model.trust_remote_code
    flag, local = f"--actor.model_name_or_path {name}", Path(name).is_dir()
    problems, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for what, again in _parts(args, name, trusted, Path(folder)):
            try:
                note = again()
            except Broken as error:
                problems.append(f"{flag}: its {what} {error}; correct it in a copy of the folder")
            except Exception as error:  # each library raises its own types
                if local:  # otherwise the Hub may not respond
                    problems.append(
                        f"{flag}: its {what} cannot be loaded ({short(error)}); correct it, or copy the model again"
                    )
            else:
                notes += [f"{what} of {name}: {note}"] if note else []
    if not problems and local:
        problems += _rows(args, name)
    return problems, notes


def _parts(args: SimpleNamespace, name: str, trusted: bool, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    from transformers import AutoConfig, GenerationConfig

    def config() -> str:
        _saved(AutoConfig.from_pretrained(name, trust_remote_code=trusted), folder)
        AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        return ""

    def generation() -> str:
        found = GenerationConfig.from_pretrained(name)
        repaired = make_savable(found)
        _saved(found, folder)
        return repaired

    def tokenizer() -> str:
        own = tokenizer_of(args, name)
        _saved(own, folder)
        if tokenizer_of(args, folder).get_vocab() != own.get_vocab():
            raise Broken("changes when it is saved and loaded")
        return ""

    yield "config.json", config
    if not Path(name).is_dir() or (Path(name) / GENERATION_CONFIG).is_file():
        yield GENERATION_CONFIG, generation
    if "vision_config" not in config_of(name):
        yield "tokenizer", tokenizer


def tokenizer_of(args: SimpleNamespace, model: str | Path) -> Any:
    """Return the tokenizer of a model as the run loads it."""
    from transformers import AutoTokenizer

    trusted, fast = args.model.trust_remote_code, not args.data.disable_fast_tokenizer
    return AutoTokenizer.from_pretrained(model, trust_remote_code=trusted, use_fast=fast)


def _saved(part: Any, folder: Path) -> None:
    try:
        part.save_pretrained(folder)
    except Exception as error:
        raise Broken(f"loads but cannot be saved ({short(error)})") from error


def _rows(args: SimpleNamespace, name: str) -> Iterator[str]:
    """Yield models that lack an embedding row for some tokens of the actor's tokenizer."""
    vocabulary = tokenizer_of(args, name).get_vocab()
    readers = {model: getattr(getattr(args, model), "model_name_or_path", None) or name for model in models(args)}
    for model, path in {"actor": name, **readers}.items():
        rows = config_of(path).get("vocab_size")
        if isinstance(rows, int) and (outside := without_embedding_row(vocabulary, rows)):
            yield (
                f"--{model}.model_name_or_path {path}: the tokenizer{'' if path == name else f' of {name}'} has "
                f"{len(outside)} tokens without an embedding row in the model ({_shown(outside)}; {rows} rows). Call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again, or take the tokens out of the "
                "tokenizer"
            )


def without_embedding_row(vocabulary: dict[str, int], rows: int) -> list[tuple[str, int]]:
    """Return the tokens whose id is `rows` or more, with their ids, in order of id."""
    return sorted(((token, number) for token, number in vocabulary.items() if number >= rows), key=lambda one: one[1])


def _shown(tokens: Sequence[tuple[str, int]]) -> str:
    text = ", ".join(f"{token!r} is {number}" for token, number in tokens[:SHOWN])
    return text + (", ..." if len(tokens) > SHOWN else "")
