"""Stored responses: JSONL, optionally gzipped, one object per line, read as a stream.

`{"benchmark": "amc", "gold": "142", "response": "...", "id": 7, "problem": "..."}`; `id` and `problem` are optional.
Rows of one benchmark with the same id, or without ids with the same problem text, are samples of one problem. Their
problem and gold must agree.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.base.plain_json import parse_json

REQUIRED = ("benchmark", "gold", "response")
SHOWN = 80  # characters of a value in a message
MOST_LINE = 64 * 2**20  # characters; a response has some thousands
MOST_UNPACKED = 256 * 2**20  # characters read from a .gz of any size
MOST_RATIO = 200  # characters per byte of a larger .gz; responses reach 3, very repetitive ones 50
MOST_TOKENS = 2**53  # of a response; sums of larger numbers are not exact


def scan(path: Path) -> tuple[int, str]:
    """Read the whole file once, keeping only digests of its problems; return the number and a SHA-256 of the rows.

    Raises BadInput if the file is missing, empty or truncated, or a row is invalid.
    """
    digest, rows, problems = hashlib.sha256(), 0, Problems()
    for row in read(path):
        key = row["benchmark"], problem_key(row, rows)
        if other := problems.add(key, row):
            raise BadInput(
                f"{path}: benchmark {key[0]!r}, id {key[1]!r}: two rows have different {other}s; rows with one id are "
                "samples of one problem: give each problem its own id"
            )
        digest.update(json.dumps(row, sort_keys=True).encode())
        rows += 1
    if rows == 0:
        raise BadInput(f"{path}: is empty; give one JSON object per line with {', '.join(REQUIRED)}")
    return rows, digest.hexdigest()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the checked rows of `path`. Raises BadInput if the file cannot be read or a row is invalid."""
    for line, text in text_lines(path):
        yield _checked(parsed(text, f"{path}: line {line}"), f"{path}: line {line}")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank, in bounded memory.

    Raises BadInput if the file is missing, truncated or not text, a line is too long, or a .gz unpacks to too much.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    packed = path.suffix == ".gz"
    most = max(MOST_UNPACKED, MOST_RATIO * path.stat().st_size) if packed else math.inf
    line = total = 0
    try:
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8") as file:
            while text := file.readline(MOST_LINE + 1):
                line, total = line + 1, total + len(text)
                where = f"{path}: line {line}"
                if total > most:
                    raise BadInput(
                        f"{where}: unpacks to more than {most:,} characters; unpack it first if that is right"
                    )
                if len(text) > MOST_LINE:
                    raise BadInput(f"{where}: more than {MOST_LINE:,} characters; write one response a line")
                if text.strip():
                    yield line, text
    except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read after line {line} ({error}); the file may be truncated") from None


def parsed(text: str, where: str) -> Any:
    r"""Return the value of one line.

    Raises BadInput if it is not JSON, or contains an unpaired surrogate (a lone `\ud800`), which UTF-8 cannot encode.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{where} is not a JSON object ({error}); the file may be truncated") from None
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise BadInput(f"{where} has an unpaired surrogate ({half!a}), which is not text; delete it") from None
    return value


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(f"{where} is {str(row)[:SHOWN]!r}, not a JSON object; give {', '.join(REQUIRED)}")
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
    """Return the key shared by samples of a problem: the id, else a hash of the problem text, else the row number."""
    if row.get("id") is not None:
        return str(row["id"])
    if row.get("problem"):
        return "problem-" + hashlib.sha256(str(row["problem"]).encode()).hexdigest()[:16]
    return f"row-{number}"


class Problems:
    """Digests of the problems seen so far, to check that rows with the same id are samples of the same problem."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[bytes | None]] = {}

    def add(self, key: tuple[str, str], row: Mapping[str, Any]) -> str:
        """Add a row; return `problem` or `gold` if it differs from an earlier row with the same key, else ""."""
        found = self.of(row)
        known = self._known.setdefault(key, found)
        for name, other, own in zip(("problem", "gold"), known, found, strict=True):
            if None not in (other, own) and other != own:
                return name
        self._known[key] = [own or other for own, other in zip(found, known, strict=True)]
        return ""

    @staticmethod
    def of(row: Mapping[str, Any]) -> list[bytes | None]:
        """Return digests of problem and gold, each None if missing."""
        problem, gold = row.get("problem"), row.get("gold")
        golds = gold if isinstance(gold, list) else [gold]
        texts = [
            None if problem is None else str(problem),
            None
            if gold is None
            else repr([str(one).removesuffix(".0") if isinstance(one, float) else str(one) for one in golds]),
        ]
        return [None if text is None else hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
