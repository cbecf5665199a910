"""Would the verifier accept the right answer? Tried on the first golds of the prompt file, before anything loads."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.preflight.prompt_files import is_local
from openrlhf_ktae.run.data_names import entries

FIRST = 16


@dataclass(frozen=True)
class GoldCheck:
    """How many of the first golds were looked at, and those that cannot be read."""

    looked: int
    unreadable: tuple[str, ...]


def check_golds(args: SimpleNamespace, first: int = FIRST) -> GoldCheck | None:
    """Read the first golds as the verifier does; None where it does not judge, or the data are not in a local file."""
    name = entries(args.data.prompt_dataset or "")[0][0]
    judged = args.verifier.enable and not args.verifier.config["reward_file"]
    if not judged or not args.data.label_key or not is_local(name) or not Path(name).is_file():
        return None
    from openrlhf_ktae.verifier.golds import gold_forms

    golds = [row.get(args.data.label_key) for row in itertools.islice(_rows(Path(name)), first)]
    return GoldCheck(len(golds), tuple(str(gold) for gold in golds if not gold_forms(gold)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a text file; other formats yield none (they need a library that takes long to import)."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix in (".json", ".jsonl"):
        with path.open(encoding="utf-8") as file:
            if file.read(1) == "[":
                file.seek(0)
                yield from json.load(file)
                return
            file.seek(0)
            yield from (json.loads(line) for line in file if line.strip())
