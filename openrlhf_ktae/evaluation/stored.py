"""Responses that exist already: JSONL, also gzipped, one object a line, read as a stream.

`{"benchmark": "amc", "gold": "142", "response": "...", "id": 7, "problem": "..."}`; `id` and `problem` may be missing.
Rows of one benchmark with the same id (else the same problem text) are samples of one problem, and must have its
problem and gold.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.base.plain_json import parse_json

REQUIRED = ("benchmark", "gold", "response")
SHOWN = 80  # characters of a value in a message
MOST_TOKENS = 2**53  # of a response; beyond it sums are no longer exact


@dataclass(frozen=True)
class Scan:
    """What one pass over a file finds."""

    rows: int
    sha256: str


def scan(path: Path) -> Scan:
    """Read the whole file once, in constant memory.

    Raises:
        BadInput: the file is missing, empty or cut off, or a row is not as it must be.
    """
    digest, rows, problems = hashlib.sha256(), 0, Problems()
    for row in read(path):
        key = row["benchmark"], problem_key(row, rows)
        if other := problems.add(key, row):
            raise BadInput(
                f"{path}: benchmark {key[0]!r}, id {key[1]!r}: two rows have different {other}s; rows with one id are "
                "samples of one problem: give each problem an id of its own"
            )
        digest.update(json.dumps(row, sort_keys=True).encode())
        rows += 1
    if rows == 0:
        raise BadInput(f"{path}: is empty; give one JSON object a line with {', '.join(REQUIRED)}")
    return Scan(rows, digest.hexdigest())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of `path`, checked; raises `BadInput` as `scan` does."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    opener = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield _checked(parsed(text, f"{path}: line {line}"), f"{path}: line {line}")
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read after line {line} ({error}); the file may be cut off") from None


def parsed(text: str, where: str) -> Any:
    r"""Return the value of one line.

    Raises:
        BadInput: it is no JSON, or a text in it has half a character (`\ud800` alone), which no file can hold.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{where} is no JSON object ({error}); the file may be cut off") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise BadInput(f"{where} has half a character ({half!a}), which is no text; delete it there") from None
    return value


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{where} is no JSON object but {str(row)[:SHOWN]!r}; give {', '.join(REQUIRED)}")
    missing = [name for name in REQUIRED if name not in row]
    if missing:
        raise BadInput(f"{where} has no {', '.join(missing)}; it has {', '.join(row) or 'nothing'}")
    for name in ("benchmark", "response"):
        if not isinstance(row[name], str) or (name == "benchmark" and not row[name]):
            raise BadInput(f"{where}: {name} is {str(row[name])[:SHOWN]!r}; give a text")
    if not isinstance(row["gold"], (str, int, float, list)) or isinstance(row["gold"], bool):
        raise BadInput(f"{where}: gold is {str(row['gold'])[:SHOWN]!r}; give a text, a number or a list of answers")
    tokens = row.get("tokens")
    if isinstance(tokens, int) and not 0 <= tokens <= MOST_TOKENS:
        raise BadInput(f"{where}: tokens is {str(tokens)[:SHOWN]}; give the length of the response, or leave it out")
    return row


def problem_key(row: Mapping[str, Any], number: int) -> str:
    """Return what samples of one problem share: the id, else a hash of the problem text, else the row's number."""
    if row.get("id") is not None:
        return str(row["id"])
    if row.get("problem"):
        return "problem-" + hashlib.sha256(str(row["problem"]).encode()).hexdigest()[:16]
    return f"row-{number}"


class Problems:
    """What the problems seen so far are, a few bytes each: is a row with the id of one of them a sample of it?"""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[bytes | None]] = {}

    def add(self, key: tuple[str, str], row: Mapping[str, Any]) -> str:
        """Take in a row; return `problem` or `gold` where an earlier one of the same key has another, else ""."""
        found = self.of(row)
        known = self._known.setdefault(key, found)
        for name, other, own in zip(("problem", "gold"), known, found, strict=True):
            if None not in (other, own) and other != own:
                return name
        self._known[key] = [own or other for own, other in zip(found, known, strict=True)]
        return ""

    @staticmethod
    def of(row: Mapping[str, Any]) -> list[bytes | None]:
        """Return digests of problem and gold; None where there is none."""
        problem, gold = row.get("problem"), row.get("gold")
        golds = gold if isinstance(gold, list) else [gold]
        texts = [
            None if problem is None else str(problem),
            None
            if gold is None
            else repr([str(one).removesuffix(".0") if isinstance(one, float) else str(one) for one in golds]),
        ]
        return [None if text is None else hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
