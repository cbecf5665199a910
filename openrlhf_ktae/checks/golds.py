"""Would the verifier accept the right answer? Checked on the first golds of the prompt file, before models load."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.data.names import entries
from openrlhf_ktae.data.prompt_files import TEXT_SUFFIXES, is_local, text_rows

FIRST = 16


@dataclass(frozen=True)
class GoldCheck:
    """How many of the first golds were checked, and which of them cannot be read."""

    looked: int
    unreadable: tuple[str, ...]


def check_golds(args: SimpleNamespace, first: int = FIRST) -> GoldCheck | None:
    """Read the first golds as the verifier does; None if it does not judge or the data are not a local file."""
    name = entries(args.data.prompt_dataset or "")[0][0]
    judged = args.verifier.enable and not args.verifier.config.reward_file
    if not judged or not args.data.label_key or not is_local(name) or not Path(name).is_file():
        return None
    from openrlhf_ktae.verifier.golds import gold_forms

    path = Path(name)
    if path.suffix not in TEXT_SUFFIXES:  # other formats need a library that is slow to import
        return GoldCheck(0, ())
    golds = [row.get(args.data.label_key) for row in itertools.islice(text_rows(path), first)]
    return GoldCheck(len(golds), tuple(str(gold) for gold in golds if not gold_forms(gold)))
