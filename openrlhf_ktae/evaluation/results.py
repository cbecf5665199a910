"""The output folder of an evaluation; a killed evaluation resumes where it stopped.

responses.jsonl   one line per response, in the order of grading
settings.json     settings, with digests of model and problems; a folder with other settings is refused
summary.json      metrics with 95 % intervals, model, template, sampling, grader
summary.md        the same as a table
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.base.places import unusable
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short_repr
from openrlhf_ktae.evaluation.stored import MOST_TOKENS, parsed
from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG

RESPONSES, SETTINGS, SUMMARY = "responses.jsonl", "settings.json", "summary.json"
SHOWN_CHARACTERS = 200  # of a setting in a message


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_TOKENS


FIELDS: dict[str, Callable[[Any], bool]] = {  # a check for each field of a row that this package reads
    "benchmark": _is_text,
    "id": _is_text,
    "sample": _is_count,
    "verdict": (CORRECT, WRONG, UNKNOWN).__contains__,
    "extracted": lambda value: value is None or _is_text(value),
    "format": lambda value: isinstance(value, bool),
    "characters": _is_count,
    "tokens": lambda value: value is None or _is_count(value),
    "truncated": lambda value: value is None or isinstance(value, bool),
}


class ResultFolder:
    """The output folder of one evaluation."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Open `directory`; existing rows are kept unless `overwrite`.

        Raises BadInput if the folder has results with other settings.
        """
        self.directory = directory
        self.responses = directory / RESPONSES
        plain = json.loads(json.dumps(settings))
        path = directory / SETTINGS
        require_folder("--output", directory)
        if overwrite:
            self.responses.unlink(missing_ok=True)
        elif self.responses.is_file():
            _refuse_other(directory, _settings_of(path), plain)
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _drop_partial_line(self.responses)

    def append(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Write and yield each row. A kill can only truncate the last line, which the next start removes."""
        with self.responses.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                yield row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows written so far."""
        return read_rows(self.responses)

    def finish(self, summary: Mapping[str, Any], table: str) -> None:
        """Write the summary as JSON and as a table."""
        write_both(self.directory / SUMMARY, summary, table)


def write_both(path: Path, content: Mapping[str, Any], table: str) -> None:
    """Write `content` to `path` as JSON and its Markdown `table` next to it, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON has no NaN
    text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # escapes a lone surrogate as JSON does
    path.with_suffix(".md").write_text(table, encoding="utf-8", errors="backslashreplace")


def require_folder(flag: str, path: Path) -> None:
    """Raise `BadInput` if no writable folder can be created at `path`."""
    if reason := unusable(path):
        raise BadInput(f"{flag} {path}: {reason}")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `responses.jsonl`; nothing if it is missing.

    Raises BadInput if a line is not a graded row.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            try:
                row = parsed(line.decode(), where)
            except ValueError:
                raise BadInput(f"{where} is not a graded response; give another --output") from None
            wrong = _wrong_field(row)
            if wrong:
                raise BadInput(f"{where} is not a graded response ({wrong}); give another --output")
            yield row


def _wrong_field(row: Any) -> str:
    """Return the fault of a graded row; empty if there is none."""
    if not isinstance(row, dict):
        return "not a JSON object"
    wrong = (name for name, fits in FIELDS.items() if not fits(row.get(name)))
    return next((f"{name} is {ascii(row.get(name))[:SHOWN_CHARACTERS]}" for name in wrong), "")


def grader_hash(folder: Path) -> str | None:
    """Return the hash of the grader that judged the results of a folder (or of a file in it); None if unknown."""
    try:
        found = _settings_of((folder if folder.is_dir() else folder.parent) / SETTINGS)["grader"]["hash"]
    except (BadInput, KeyError, TypeError):
        return None
    return str(found)


def _settings_of(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError):
        raise BadInput(f"{path}: missing or unreadable next to results; give --overwrite or another --output") from None


def _refuse_other(directory: Path, found: dict[str, Any], asked: Mapping[str, Any]) -> None:
    changes = [
        f"{name} {short_repr(found[name], SHOWN_CHARACTERS)} instead of {short_repr(asked.get(name), SHOWN_CHARACTERS)}"
        if name in found
        else f"{name} is not recorded there"  # written by an earlier version, or by another kind of evaluation
        for name in {**found, **asked}
        if found.get(name) != asked.get(name)
    ]
    if changes:
        raise BadInput(
            f"--output {directory}: has results with other settings ({', '.join(changes)}); give --overwrite, or "
            "another --output"
        )


def _drop_partial_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        tail = b""
        while end > 0 and b"\n" not in tail:
            start = max(0, end - 65536)
            file.seek(start)
            tail, end = file.read(end - start) + tail, start
        file.truncate(end + tail.rfind(b"\n") + 1)
