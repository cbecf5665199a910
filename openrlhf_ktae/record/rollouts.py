"""The rollouts of recorded steps: `rollouts/step-000010.parquet` in the run directory, readable without the model.

A row is a rollout; rows of a group are consecutive. Lists except `prompt_ids` have one entry per response token. The
response begins at the first action token and ends at the last; environment tokens in between have `action` false. File
metadata (`openrlhf_ktae`, JSON): step, options of the estimator, special ids, model, and a hash of the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
    "rollout_log_probs": "list<float>",
    "truncated": "bool",
}
ADDED = ("rollout_log_probs", "truncated")
"""The sampler's log-probabilities, if recorded, and whether the response was truncated. Earlier versions lack both."""
NEEDED = {name: "list<float>" for name in ("log_probs", "entropies", "sum_squares", "values", "in_prompt")}
"""Columns for the inputs that the run's estimator needs; NaN in `values` means no value."""
MEGABYTE = 2**20


@dataclass(frozen=True)
class Credit:
    """Rollouts of one batch with their credit, in the experience maker's micro-batches of b rollouts.

    Position t of a row of a (b, T) tensor is token t + 1, as in the host's action mask.
    """

    micro_batches: Sequence[Any]
    """The host's experiences, with their advantages."""
    scores_B: torch.Tensor
    rewards_B: torch.Tensor
    """Rewards before any shaping."""
    groups_B: torch.Tensor
    values: Sequence[torch.Tensor]
    """Weighted credit (K for KTAE) of each micro-batch (b, T); 0 except on action tokens."""
    added: Sequence[torch.Tensor]
    """The part of `values` that was added to the advantages: the same tables, or scalars 0."""
    figures: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    """Other per-token inputs of the estimator: name in `NEEDED` -> tables like `values`."""


class RolloutRecorder:
    """Writes every `every`-th step, until the files would exceed `max_mb` MiB."""

    def __init__(
        self, directory: str | Path, every: int, max_mb: int, max_groups: int, about: Mapping[str, Any]
    ) -> None:
        self.directory = Path(directory) / DIRECTORY
        self._every, self._limit, self._max_groups = every, max_mb * MEGABYTE, max_groups
        self._about = dict(about)
        self._texts: TokenTexts | None = None  # created once, with the hash: a large vocabulary takes a second
        self._hash = ""
        self.full = False

    def wants(self, step: int) -> bool:
        """Return whether to record this step."""
        return self._every > 0 and not self.full and step % self._every == 0

    def write(self, step: int, credit: Credit, tokenizer: Any) -> Path | None:
        """Write one step; returns None and stops recording if the size limit would be exceeded."""
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
        schema = schema_of(pa, credit.figures).with_metadata({METADATA_KEY: json.dumps(about).encode()})
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
    """Move recorded steps after `step`, the step of the checkpoint to resume from, to `rollouts.abandoned`."""
    aside = Path(directory) / f"{DIRECTORY}.abandoned"
    for path in (Path(directory) / DIRECTORY).glob(f"{PREFIX}*.parquet"):
        number = path.stem.removeprefix(PREFIX)
        if number.isdecimal() and int(number) > step:
            aside.mkdir(exist_ok=True)
            path.replace(aside / path.name)


def schema_of(pa: Any, more: Iterable[str] = ()) -> Any:
    """Return the columns of a record, and those of `NEEDED` in `more`, as a pyarrow schema."""
    columns = {**COLUMNS, **{name: NEEDED[name] for name in more}}
    return pa.schema([(name, arrow_type(pa, kind)) for name, kind in columns.items()])


def arrow_type(pa: Any, kind: str) -> Any:
    """Return pyarrow's type for a kind of `COLUMNS`."""
    plain = {"int32": pa.int32(), "string": pa.string(), "float": pa.float32(), "bool": pa.bool_()}
    if kind.startswith("list<"):
        return pa.list_(plain[kind[5:-1]])
    return plain[kind]


def rows_of(step: int, credit: Credit, text: TokenTexts, max_groups: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of a step, group by group; with `max_groups`, only of the first groups."""
    places = [(m, row) for m, batch in enumerate(credit.micro_batches) for row in range(len(batch.sequences))]
    numbers: dict[int, int] = {}
    groups_B, scores_B, rewards_B = (
        part.tolist() for part in (credit.groups_B, credit.scores_B, credit.rewards_B.float())
    )
    last = sorted(set(groups_B))[: max_groups or None][-1:]
    for i in sorted(range(len(places)), key=groups_B.__getitem__):
        group = groups_B[i]
        if group > last[0]:
            return
        rollout = numbers[group] = numbers.get(group, -1) + 1
        row = _row(credit, *places[i], text)
        place = {"step": step, "group": group, "rollout": rollout}
        yield {**place, "score": scores_B[i], "reward": rewards_B[i], **row}


def _row(credit: Credit, number: int, row: int, text: TokenTexts) -> dict[str, Any]:
    batch = credit.micro_batches[number]
    acted = batch.action_mask[row].bool()
    positions = torch.nonzero(acted).flatten()
    start, end = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (acted.numel(), acted.numel())
    ids = batch.sequences[row, start + 1 : end + 1].tolist()
    before = batch.sequences[row, : start + 1]
    seen = batch.attention_mask[row, : start + 1].bool()
    seen[0] = True

    def part(table: torch.Tensor) -> NDArray[np.float32]:
        chosen = table.expand_as(acted)[start:end] if table.dim() == 0 else table[row, start:end]
        return chosen.float().numpy()

    advantages, added = part(batch.advantages), part(credit.added[number])
    log_probs = batch.rollout_log_probs
    return {
        "prompt": batch.prompts[row],
        "label": str(batch.labels[row]),
        "response": response_text(text.tokenizer, ids),
        "prompt_ids": before[seen].int().numpy(),
        "token_ids": np.array(ids, np.int32),
        "token_texts": text.of(ids),
        "action": acted[start:end].numpy(),
        "k": part(credit.values[number]),
        "advantages_without_k": advantages - added,
        "advantages": advantages,
        "rollout_log_probs": None if log_probs is None else part(log_probs),
        "truncated": bool(batch.truncated.flatten()[row]),
        **{name: part(tables[number]) for name, tables in credit.figures.items()},
    }


class TokenTexts:
    """The text of each token as it appears inside a longer text, with its leading space, for any tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._partial: set[int] = set()  # tokens that are part of a character

    def of(self, ids: Sequence[int]) -> list[str]:
        """Return one text per id. If a character spans several tokens, the first gets it and the others are empty."""
        known, different = self._known, set(ids)
        for token in different.difference(known):
            known[token] = self._text(token)
            if "\ufffd" in known[token]:
                self._partial.add(token)
        texts = list(map(known.__getitem__, ids))
        start = len(texts) if self._partial.isdisjoint(different) else 0
        while start < len(texts):
            end = start + 1
            if "\ufffd" in texts[start]:
                while end < len(texts) and "\ufffd" in texts[end]:
                    end += 1
                texts[start:end] = [self.tokenizer.decode(list(ids[start:end])), *[""] * (end - start - 1)]
            start = end
        return texts

    def _text(self, token: int) -> str:
        # Decoded after another token, because SentencePiece tokenizers drop a leading space.
        alone, doubled = self.tokenizer.decode([token]), self.tokenizer.decode([token, token])
        return doubled[len(alone) :] if doubled.startswith(alone) else alone


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of the vocabulary: records of different tokenizers must not be mixed."""
    vocabulary = sorted((int(i), token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
