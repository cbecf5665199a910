"""Stored responses as groups for the token-credit page: responses to one problem form a group."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.evaluation import stored
from openrlhf_ktae.record.recorded import RecordedGroup
from openrlhf_ktae.record.rollouts import TokenTexts
from openrlhf_ktae.report.judged import judge

# A word with the space before it, or one symbol. Longer runs are split so that they fit on a page.
WORDS = re.compile(r"\s{0,99}(?:\w{1,100}|[^\w\s])|\s{1,100}")


def stored_groups(path: Path, tokenizer: Any = None, limit: int | None = None) -> Iterator[RecordedGroup]:
    """Yield one group for each problem of `path` (see `evaluation.stored`), up to `limit` problems.

    `report.judged` scores the rows. Without a tokenizer, tokens are words and symbols. Raises BadInput if the file is
    invalid.
    """
    problems: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for number, row in enumerate(stored.read(path)):
        key = row["benchmark"], stored.problem_key(row, number)
        if key in problems or limit is None or len(problems) < limit:
            problems.setdefault(key, {})[number + 1] = row
    if not problems:
        raise BadInput(f"{path}: is empty")
    scored, judged = judge({number: row for of_one in problems.values() for number, row in of_one.items()}, str(path))
    texts, numbers = None if tokenizer is None else TokenTexts(tokenizer), dict[str, int]()

    def split(text: str) -> tuple[list[int], list[str]]:
        """Return ids and texts of tokens; without a tokenizer, of words and symbols, numbered as they appear."""
        if texts is None:
            words = WORDS.findall(text)
            return [numbers.setdefault(word, len(numbers)) for word in words], words
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids, texts.of(ids)

    about = {"step": 0, "model": path.name, "estimator": "group_norm", "stored": True, "judged": judged}
    for number, members in enumerate(problems.values()):
        scores = [scored[row] for row in members]
        built = [
            _row(row, rollout, score, *split(row["response"]), advantage)
            for rollout, (row, score, advantage) in enumerate(
                zip(members.values(), scores, _advantages(scores), strict=True)
            )
        ]
        yield RecordedGroup(0, number, built, about)


def _advantages(scores: Sequence[float | None]) -> list[float]:
    """Return the group-normalised advantages; 0 for an unknown score."""
    known = [score for score in scores if score is not None]
    mean = sum(known) / len(known) if known else 0.0
    spread = (sum((score - mean) ** 2 for score in known) / max(1, len(known) - 1)) ** 0.5
    return [0.0 if score is None else (score - mean) / (spread + 1e-9) for score in scores]


def _row(
    row: dict[str, Any], rollout: int, score: float | None, ids: list[int], texts: list[str], advantage: float
) -> dict[str, Any]:
    gold = row["gold"]
    return {
        "rollout": rollout,
        "prompt": str(row.get("problem") or f"{row['benchmark']} {row.get('id', '')}"),
        "label": " or ".join(map(str, gold)) if isinstance(gold, list) else str(gold),
        "response": row["response"],
        "score": score,
        "token_ids": ids,
        "token_texts": texts,
        "action": [True] * len(ids),
        "k": [0.0] * len(ids),
        "advantages_without_k": [advantage] * len(ids),
        "advantages": [advantage] * len(ids),
    }
