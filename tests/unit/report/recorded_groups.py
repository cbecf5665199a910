"""Handmade recorded groups for tests of reports and pages."""

from __future__ import annotations

import random

from openrlhf_ktae.record.recorded import RecordedGroup

ABOUT = {"step": 3, "model": "a/model", "estimator": "group_norm", "special_ids": [1], "ktae": {"variant": "paper"}}
WORDS = [" so", " we", " have", " 3", " +", " 4", " maybe", " gives", " 7", "\n", " then", " the", " answer", " is"]


def group(rollouts, step=3, number=0, prompt="What is 3 + 4?", about=None):
    """Return a group of rollouts given as (score, [token texts]); equal texts get equal ids."""
    ids = {}
    rows = []
    for score, texts in rollouts:
        refs = [ids.setdefault(text, len(ids) + 2) for text in texts]
        base = 0.0 if score is None else (1.0 if score > 0 else -1.0)
        rows.append(
            {
                "step": step,
                "group": number,
                "rollout": len(rows),
                "prompt": prompt,
                "label": "7",
                "response": "".join(texts),
                "score": float("nan") if score is None else float(score),
                "reward": 0.0,
                "prompt_ids": [2],
                "token_ids": refs,
                "token_texts": list(texts),
                "action": [True] * len(refs),
                "k": [0.0] * len(refs),
                "advantages_without_k": [base] * len(refs),
                "advantages": [base] * len(refs),
            }
        )
    return RecordedGroup(step, number, rows, {**ABOUT, "step": step, **(about or {})})


def plain(step=3, number=0):
    """Return four right and four wrong rollouts; only right ones contain " gives", only wrong ones " maybe"."""
    right = [" 3", " +", " 4", " gives", " 7"]
    wrong = [" 3", " +", " 4", " maybe", " 8", "\n"]
    return group([(1, right)] * 4 + [(0, wrong)] * 4, step, number)


def large(rollouts=16, tokens=800, distinct=1500, seed=0):
    """Return the largest group a page must hold: long rollouts with many distinct tokens."""
    generator = random.Random(seed)
    vocabulary = WORDS + [f" word{i}" for i in range(distinct)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    return group([(i % 2, generator.choices(vocabulary, weights, k=tokens)) for i in range(rollouts)])


HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'>",
    "</script><img onerror=window.pwned=4 src=x>",
    "<!--<script>",
    "&lt;b&gt;",
    "\u202etxet desrever\u202c",
    "\x00\x1b[31m",
    "\ud83d",
    "\u2028${window.pwned = 3}`",
    "]]>",
    "",
    "javascript:window.pwned=4",
]


def hostile():
    return group([(1, HOSTILE), (0, HOSTILE[::-1][:6]), (None, HOSTILE[:2])], prompt="".join(HOSTILE))
