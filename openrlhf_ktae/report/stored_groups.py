"""Stored responses as groups for the token-credit page: responses of one problem are its rollouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_ktae.evaluation import stored
from openrlhf_ktae.run.rollout_record import RecordedGroup, TokenTexts
from openrlhf_ktae.verifier import CORRECT, UNKNOWN, Verifier, VerifierConfig

WORDS = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
SCORES = ("score", "published_reward", "reward")


def stored_groups(path: Path, tokenizer: Any = None, limit: int | None = None) -> Iterator[RecordedGroup]:
    """Yield one group for each problem of `path` (see `evaluation.stored`), the first `limit` problems.

    A row's `verdict` or `score` counts; rows without one are graded. Without a tokenizer, tokens are words and signs.

    Raises:
        BadInput: the file is not as it must be.
    """
    problems: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, row in enumerate(stored.read(path)):
        key = row["benchmark"], stored.problem_key(row, number)
        if key in problems or limit is None or len(problems) < limit:
            problems.setdefault(key, []).append(row)
    if not problems:
        raise stored.BadInput(f"{path}: is empty")
    rows = [row for members in problems.values() for row in members]
    _grade([row for row in rows if _score(row) is ...])
    split = _Words() if tokenizer is None else _Tokens(tokenizer)
    for number, members in enumerate(problems.values()):
        scores = [_score(row) for row in members]
        known = [score for score in scores if score is not None]
        mean = sum(known) / len(known) if known else 0.0
        spread = (sum((score - mean) ** 2 for score in known) / max(1, len(known) - 1)) ** 0.5
        built = []
        for row, score in zip(members, scores, strict=True):
            ids, texts = split.of(row["response"])
            advantage = 0.0 if score is None else (score - mean) / (spread + 1e-9)
            built.append(_row(row, score, ids, texts, advantage))
        about = {"step": 0, "model": path.name, "estimator": "group_norm", "stored": True}
        yield RecordedGroup(0, number, built, about)


def _score(row: dict[str, Any]) -> Any:
    """Return the score, None for an unknown verdict, or ... where the row has neither."""
    if "verdict" in row:
        return None if row["verdict"] == UNKNOWN else float(row["verdict"] == CORRECT)
    for name in SCORES:
        if isinstance(row.get(name), (int, float)):
            return float(row[name])
    return ...


def _grade(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    with Verifier(VerifierConfig()) as verifier:
        verdicts = verifier.verify_many((row["gold"], row["response"]) for row in rows)
    for row, verdict in zip(rows, verdicts, strict=True):
        row["verdict"] = verdict.status


def _row(
    row: dict[str, Any], score: float | None, ids: list[int], texts: list[str], advantage: float
) -> dict[str, Any]:
    return {
        "prompt": str(row.get("problem") or f"{row['benchmark']} {row.get('id', '')}"),
        "label": str(row["gold"]),
        "response": row["response"],
        "score": score,
        "token_ids": ids,
        "token_texts": texts,
        "action": [True] * len(ids),
        "k": [0.0] * len(ids),
        "advantages_without_k": [advantage] * len(ids),
        "advantages": [advantage] * len(ids),
    }


class _Words:
    """Words and signs, numbered as they come."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def of(self, text: str) -> tuple[list[int], list[str]]:
        words = WORDS.findall(text)
        return [self._ids.setdefault(word, len(self._ids)) for word in words], words


class _Tokens:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._texts = tokenizer, TokenTexts(tokenizer)

    def of(self, text: str) -> tuple[list[int], list[str]]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids, self._texts.of(ids)
