"""Load the problems of a benchmark: from the Hub at a pinned revision (`benchmarks.yaml`), a folder, or a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.base.text import short
from openrlhf_ktae.evaluation.stored import parsed, text_lines

REGISTRY = Path(__file__).with_name("benchmarks.yaml")
PROBLEM_COLUMNS = ("problem", "question", "input", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "gold", "label")


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark with its gold answer."""

    benchmark: str
    id: str
    problem: str
    gold: Any

    @property
    def key(self) -> tuple[str, str]:
        """Benchmark and id, which together identify the problem."""
        return self.benchmark, self.id


@lru_cache(maxsize=1)
def registry() -> dict[str, dict[str, Any]]:
    """Return name -> data set, revision, split, columns, rows."""
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))


def load(name: str, folder: Path | None = None) -> list[Problem]:
    """Return the problems of `name`: a benchmark in the registry or in `folder`, or a JSONL file.

    Raises BadInput if there is no such benchmark, or a row is invalid.
    """
    path = Path(name)
    if path.suffix == ".jsonl":
        return _of_file(path.stem, path)
    if folder is not None:
        if not folder.is_dir():
            raise BadInput(f"--benchmark_dir {folder}: no such folder")
        return _of_file(name, folder / f"{name}.jsonl")
    if name not in registry():
        raise BadInput(
            f"--benchmarks {name}: not one of {', '.join(registry())}; or give a .jsonl file, or --benchmark_dir with "
            f"{name}.jsonl in it"
        )
    return _of_hub(name)


def source(name: str, folder: Path | None) -> str:
    """Return the source of a benchmark's problems, as the settings record it."""
    if Path(name).suffix == ".jsonl":
        return name
    if folder is not None:
        return str(folder / f"{name}.jsonl")
    entry = registry().get(name, {})
    return f"{entry.get('hub')}@{entry.get('revision')}"


def _of_file(benchmark: str, path: Path) -> list[Problem]:
    if not path.is_file():
        raise BadInput(f"--benchmarks {benchmark}: {path}: no such file")
    rows = ((f"line {line}", parsed(text, f"{path}: line {line}")) for line, text in text_lines(path))
    return _problems(benchmark, rows, str(path), None, None)


def _of_hub(name: str) -> list[Problem]:
    """Load a pinned data set; it is cached, so later loads work offline."""
    from datasets import load_dataset

    entry = registry()[name]
    try:
        rows = load_dataset(entry["hub"], revision=entry["revision"], split=entry["split"])
    except Exception as error:  # each layer of the Hub's client raises its own error types
        raise BadInput(
            f"--benchmarks {name}: {entry['hub']} cannot be loaded from the Hugging Face Hub "
            f"({type(error).__name__}: {short(error)}); give --benchmark_dir for local files"
        ) from None
    if len(rows) != entry["rows"]:
        raise BadInput(f"--benchmarks {name}: {entry['hub']} has {len(rows)} rows instead of {entry['rows']}")
    numbered = ((f"row {number}", row) for number, row in enumerate(rows))
    return _problems(name, numbered, entry["hub"], entry.get("problem"), entry.get("answer"))


def _problems(
    benchmark: str, rows: Iterator[tuple[str, Any]], origin: str, problem: str | None, answer: str | None
) -> list[Problem]:
    found: list[Problem] = []
    for where, row in rows:
        if not isinstance(row, dict):
            raise BadInput(f"{origin}: {where} is not a JSON object")
        problem = problem or _column(row, PROBLEM_COLUMNS, f"{origin}: {where}")
        answer = answer or _column(row, ANSWER_COLUMNS, f"{origin}: {where}")
        for column in (problem, answer):
            if row.get(column) is None:
                raise BadInput(f"{origin}: {where} has no {column}; it has {', '.join(row)}")
        found.append(Problem(benchmark, str(len(found)), str(row[problem]), row[answer]))
    if not found:
        raise BadInput(f"{origin}: is empty; give at least one problem")
    return found


def _column(row: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in row:
            return name
    raise BadInput(f"{where} has none of {', '.join(names)}; it has {', '.join(row) or 'nothing'}")
