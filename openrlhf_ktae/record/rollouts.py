"""The rollouts of recorded steps: `rollouts/step-000010.parquet` in the run directory, readable without the model.

A row is a rollout; rows of a group stand together. Lists have one entry for each token of the response, which begins
at the first action token; tokens of an environment in between have `action` false. Metadata of the file
(`openrlhf_ktae`, JSON): step, options of KTAE, special ids, model, and a hash of the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short
from openrlhf_ktae.verifier.formats import response_text

DIRECTORY = "rollouts"
PREFIX = "step-"
METADATA_KEY = b"openrlhf_ktae"
VERSION = 1
COLUMNS = {
    "step": "int32",
    "group": "int32",
    "rollout": "int32",
    "prompt": "string",
    "label": "string",
    "response": "string",
    "score": "float",
    "reward": "float",
    "prompt_ids": "list<int32>",
    "token_ids": "list<int32>",
    "token_texts": "list<string>",
    "action": "list<bool>",
    "k": "list<float>",
    "advantages_without_k": "list<float>",
    "advantages": "list<float>",
}
NEEDED = {name: "list<float>" for name in ("log_probs", "entropies", "sum_squares")}
"""Columns that are there when the estimator of the run needed them."""
MAYBE_NULL = ("label", "score", "reward")
DELETE = "delete the file, or give the other steps alone"
MEGABYTE = 2**20


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


ABOUT: dict[str, Callable[[Any], bool]] = {  # metadata, as far as anything computes with it
    "step": _is_id,
    "special_ids": lambda value: isinstance(value, list) and all(map(_is_id, value)),
    "ktae": lambda value: value is None or isinstance(value, dict),
    "credit": lambda value: value is None or isinstance(value, dict),
}


class BadRecord(ValueError):
    """Recorded rollouts are missing or not as they must be; the message names the file and the way out."""


@dataclass(frozen=True)
class Credit:
    """Rollouts of one batch with their advantages, as the experience maker has them: micro-batches of b rollouts.

    Position t of a row of b x T is its token t + 1, as in the host's action mask.
    """

    micro_batches: Sequence[Any]
    """The host's experiences, with their advantages."""
    scores_B: torch.Tensor
    groups_B: torch.Tensor
    values: Sequence[torch.Tensor]
    """Weighted K of each micro-batch (b, T), or what another estimator adds; 0 where there is none."""
    added: Sequence[torch.Tensor]
    """What of it was added to the advantages."""
    figures: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """What else the estimator needed of each token: tables as `values`, by names of `NEEDED`."""


@dataclass(frozen=True)
class RecordedGroup:
    """The rollouts of one prompt in one step."""

    step: int
    group: int
    rows: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt that all of them answer."""
        return self.rows[0]["prompt"]


class RolloutRecorder:
    """Writes every `every`-th step until `max_mb` are used."""

    def __init__(
        self, directory: str | Path, every: int, max_mb: int, max_groups: int, about: Mapping[str, Any]
    ) -> None:
        self.directory = Path(directory) / DIRECTORY
        self._every, self._limit, self._max_groups = every, max_mb * MEGABYTE, max_groups
        self._about = dict(about)
        self._texts: TokenTexts | None = None  # both take a second for a large vocabulary
        self._hash = ""
        self.full = False

    def wants(self, step: int) -> bool:
        """Whether this step is to be recorded."""
        return self._every > 0 and not self.full and step % self._every == 0

    def write(self, step: int, credit: Credit, tokenizer: Any) -> Path | None:
        """Write one step; None where it would exceed the limit, and from then on nothing is recorded."""
        import pyarrow as pa
        from pyarrow import parquet

        if self._texts is None or self._texts.tokenizer is not tokenizer:
            self._texts, self._hash = TokenTexts(tokenizer), tokenizer_hash(tokenizer)
        rows = list(rows_of(step, credit, self._texts, self._max_groups))
        about = {
            **self._about,
            "version": VERSION,
            "step": step,
            "special_ids": sorted(set(tokenizer.all_special_ids)),
            "tokenizer": self._hash,
        }
        schema = _schema(pa, credit.figures).with_metadata({METADATA_KEY: json.dumps(about).encode()})
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{PREFIX}{step:06d}.parquet"
        part = path.with_suffix(".part")
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")
        used = sum(one.stat().st_size for one in self.directory.glob("*.parquet") if one != path)
        if used + part.stat().st_size > self._limit:
            part.unlink()
            self.full = True
            return None
        os.replace(part, path)
        return path


def rewind_rollouts(directory: str | Path, step: int) -> None:
    """Move recorded steps after `step`, whose checkpoint a run goes on from, to `rollouts.abandoned`."""
    aside = Path(directory) / f"{DIRECTORY}.abandoned"
    for path in (Path(directory) / DIRECTORY).glob(f"{PREFIX}*.parquet"):
        number = path.stem.removeprefix(PREFIX)
        if number.isdecimal() and int(number) > step:
            aside.mkdir(exist_ok=True)
            path.replace(aside / path.name)


def _schema(pa: Any, more: Iterable[str] = ()) -> Any:
    columns = {**COLUMNS, **{name: NEEDED[name] for name in more}}
    return pa.schema([(name, _arrow_type(pa, kind)) for name, kind in columns.items()])


def _arrow_type(pa: Any, kind: str) -> Any:
    plain = {"int32": pa.int32(), "string": pa.string(), "float": pa.float32(), "bool": pa.bool_()}
    if kind.startswith("list<"):
        return pa.list_(plain[kind[5:-1]])
    return plain[kind]


def rows_of(step: int, credit: Credit, text: TokenTexts, max_groups: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of a step, group after group; with `max_groups`, of the first groups alone."""
    places = [(m, row) for m, batch in enumerate(credit.micro_batches) for row in range(len(batch.sequences))]
    numbers: dict[int, int] = {}
    groups_B, scores_B = credit.groups_B.tolist(), credit.scores_B.tolist()
    last = sorted(set(groups_B))[: max_groups or None][-1:]
    for i in sorted(range(len(places)), key=groups_B.__getitem__):
        group = groups_B[i]
        if group > last[0]:
            return
        rollout = numbers[group] = numbers.get(group, -1) + 1
        row = _row(credit, *places[i], text)
        yield {"step": step, "group": group, "rollout": rollout, "score": scores_B[i], **row}


def _row(credit: Credit, number: int, row: int, text: TokenTexts) -> dict[str, Any]:
    batch = credit.micro_batches[number]
    acted = batch.action_mask[row].bool()
    positions = torch.nonzero(acted).flatten()
    start, end = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (acted.numel(), acted.numel())
    ids = batch.sequences[row, start + 1 : end + 1].tolist()
    before = batch.sequences[row, : start + 1]
    seen = batch.attention_mask[row, : start + 1].bool()
    seen[0] = True

    def part(table: torch.Tensor) -> torch.Tensor:
        return table.expand_as(acted)[start:end] if table.dim() == 0 else table[row, start:end].float()

    advantages, added = part(batch.advantages), part(credit.added[number])
    return {
        "prompt": batch.prompts[row],
        "label": str(batch.labels[row]),
        "response": response_text(text.tokenizer, ids),
        "reward": float(batch.info["reward"].flatten()[row]),
        "prompt_ids": before[seen].tolist(),
        "token_ids": ids,
        "token_texts": text.of(ids),
        "action": acted[start:end].tolist(),
        "k": part(credit.values[number]).tolist(),
        "advantages_without_k": (advantages - added).tolist(),
        "advantages": advantages.tolist(),
        **{name: part(tables[number]).tolist() for name, tables in credit.figures.items()},
    }


class TokenTexts:
    """Text of each token as it stands within a text: with its leading space, whatever the tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """Return one text for each id. A character of several tokens stands at its first; the others are empty."""
        texts = [self._one(i) for i in ids]
        start = 0
        while start < len(texts):
            end = start + 1
            if "\ufffd" in texts[start]:
                while end < len(texts) and "\ufffd" in texts[end]:
                    end += 1
                texts[start:end] = [self.tokenizer.decode(list(ids[start:end])), *[""] * (end - start - 1)]
            start = end
        return texts

    def _one(self, token: int) -> str:
        if token not in self._known:
            # After another token, because tokenizers of the SentencePiece kind drop a leading space.
            alone, doubled = self.tokenizer.decode([token]), self.tokenizer.decode([token, token])
            self._known[token] = doubled[len(alone) :] if doubled.startswith(alone) else alone
        return self._known[token]


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of the vocabulary: records of different tokenizers must not be mixed."""
    vocabulary = sorted((int(i), token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Return the parquet files of run directories, folders and files, in order of step, each once.

    Raises:
        BadRecord: a path does not exist or holds no recorded step.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise BadRecord(f"{path}: no such file or folder")
        files = sorted(path.glob("*.parquet")) or sorted((path / DIRECTORY).glob("*.parquet"))
        if not files:
            raise BadRecord(f"{path}: holds no recorded rollouts; train with --ktae.record_rollouts N (every N steps)")
        found += files
    return list({path.resolve(): path for path in found}.values())  # the same group twice would narrow intervals


def read_groups(paths: Iterable[Path]) -> Iterator[RecordedGroup]:
    """Yield the groups of recorded steps, one file in memory at a time.

    Raises:
        BadRecord: a file is cut off, is no record, lacks a column, or was made with another tokenizer than the first.
    """
    tokenizer = first = None
    for path in paths:
        rows, about = _read(path)
        if tokenizer is None:
            tokenizer, first = about.get("tokenizer"), path
        elif about.get("tokenizer") != tokenizer:
            raise BadRecord(f"{path}: was recorded with another tokenizer than {first}; give them one at a time")
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        for group, members in groups.items():
            yield RecordedGroup(about.get("step", members[0]["step"]), group, members, about)


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise BadRecord(f"{path}: is no whole parquet file ({short(error)}); delete it or record it again") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise BadRecord(f"{path}: has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    about = None
    with suppress(KeyError, ValueError):
        about = parse_json((table.schema.metadata or {})[METADATA_KEY])
    if not isinstance(about, dict):
        raise BadRecord(f"{path}: has no metadata openrlhf_ktae; it was not written by --ktae.record_rollouts")
    for name, fits in ABOUT.items():
        if name in about and not fits(about[name]):
            raise BadRecord(f"{path}: metadata: {name} is {short(about[name])}; {DELETE}")
    try:
        more = [name for name in NEEDED if name in table.column_names]
        table = table.select([*COLUMNS, *more]).cast(_schema(pa, more))
        rows = table.to_pylist()
    except (ArrowException, ValueError) as error:
        raise BadRecord(f"{path}: a column has another type than it is written with ({short(error)})") from None
    if not rows:
        raise BadRecord(f"{path}: holds no rollout")
    for name, kind in {**COLUMNS, **{name: NEEDED[name] for name in more}}.items():
        wrong = _wrong_values(table[name], name, kind)
        if wrong:
            raise BadRecord(f"{path}: {name} holds {wrong}; {DELETE}")
    for row in rows:
        lists = [name for name, kind in COLUMNS.items() if kind.startswith("list")]
        lengths = {name: len(row[name]) for name in (*lists, *more)}
        del lengths["prompt_ids"]
        if len(set(lengths.values())) > 1:
            raise BadRecord(f"{path}: group {row['group']}, rollout {row['rollout']}: lengths differ ({lengths})")
    return rows, about


def _wrong_values(column: Any, name: str, kind: str) -> str:
    """Return what no recorder writes into this column, for a message; "" where there is nothing of that."""
    from pyarrow import compute

    flat = compute.list_flatten(column) if kind.startswith("list") else column
    if name not in MAYBE_NULL and (column.null_count or flat.null_count):
        return "a null"
    if name == "score":  # NaN is an unknown verdict
        return "an infinite number" if compute.any(compute.is_inf(flat)).as_py() else ""
    if kind == "list<float>" and not compute.all(compute.is_finite(flat), min_count=0).as_py():
        return "a number that is not finite"
    if kind == "list<int32>" and compute.any(compute.less(flat, 0)).as_py():
        return "an id below 0"
    return ""
