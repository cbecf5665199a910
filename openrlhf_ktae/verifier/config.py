"""Settings of the verifier: one frozen dataclass, passed to other processes in one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CONFIG_VARIABLE = "OPENRLHF_KTAE_VERIFIER"

UNKNOWN_POLICIES = ("zero", "exclude", "retry")
ANSWER_FORMATS = ("auto", "box", "tags")
MIN_MEMORY_MB = 512  # a worker needs about 200 MB of address space with math-verify and a numeric library loaded


@dataclass(frozen=True)
class VerifierConfig:
    """How answers are checked, the reward of each verdict, and the treatment of unknown ones."""

    workers: int = 2
    """Worker processes that check at the same time. Range: 1 to 256."""
    timeout_s: float = 5.0
    """Wall-clock limit of one check in seconds, from the moment a worker gets it. A worker over it is killed."""
    cpu_s: float = 1.5
    """CPU limit in seconds, for the gold and again for the answer; below `timeout_s`, so load changes no verdict."""
    memory_mb: int = 2048
    """Limit on a worker's address space in MiB. Range: 512 and up."""
    recycle_after: int = 2000
    """Number of checks after which a worker is replaced (sympy's caches grow)."""
    cache_size: int = 20000
    """Cached verdicts, one per gold and extracted answer; 0 disables the cache."""
    unknown: str = "exclude"
    """Treatment of an unknown verdict: `zero` scores it as wrong, `exclude` leaves it out of group statistics and KTAE
    tables, `retry` checks once more with doubled limits and then applies `after_retry`."""
    after_retry: str = "exclude"
    """Treatment of a verdict that is unknown after `retry`: `zero` or `exclude`."""
    max_unknown_share: float = 0.1
    """The run stops with examples if more than this share of the last `unknown_window` verdicts is unknown."""
    unknown_window: int = 512
    """Number of verdicts over which the share of unknown ones is computed."""
    correct_reward: float = 1.0
    """Reward of a correct answer."""
    wrong_reward: float = 0.0
    """Reward of a wrong answer."""
    answer_format: str = "auto"
    """Where the answer is: `auto` (the last box, else `<answer>` tags, else "final answer is"), `box` or `tags`."""
    format_reward: float = 0.0
    """Added to the reward (never to the score) if the response keeps the required format."""
    require_tags: tuple[str, ...] = ()
    """Tags that the format requires exactly once each, opened and closed, in this order, such as `think`, `answer`."""
    require_single_answer: bool = False
    """The format requires exactly one boxed answer."""
    reward_file: str = ""
    """Path of a Python file with `reward_func(queries, prompts, labels)` that replaces the answer check."""
    correct_threshold: float = 0.0
    """A rollout with a `reward_func` score above this is correct; a run sets it to --algo.ktae.correct_threshold."""
    reward_timeout_s: float = 60.0
    """Time limit of one call of the user's `reward_func` in seconds; after it the verdict is unknown."""
    reward_log_keys: tuple[str, ...] = ()
    """Keys of `extra_logs` of the user's `reward_func` to log as metrics; a missing one counts as 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "require_tags", tuple(self.require_tags))
        object.__setattr__(self, "reward_log_keys", tuple(self.reward_log_keys))
        _require(self, "workers", 1 <= self.workers <= 256, "between 1 and 256")
        _require(self, "timeout_s", 0 < self.timeout_s <= 600, "above 0 and at most 600 seconds")
        _require(self, "cpu_s", 0 < self.cpu_s <= 600, "above 0 and at most 600 seconds")
        _require(self, "memory_mb", self.memory_mb >= MIN_MEMORY_MB, f"at least {MIN_MEMORY_MB} MiB")
        _require(self, "recycle_after", self.recycle_after >= 1, "at least 1")
        _require(self, "cache_size", self.cache_size >= 0, "0 (off) or more")
        _require(self, "unknown", self.unknown in UNKNOWN_POLICIES, f"one of {', '.join(UNKNOWN_POLICIES)}")
        _require(self, "after_retry", self.after_retry in ("zero", "exclude"), "zero or exclude")
        _require(self, "answer_format", self.answer_format in ANSWER_FORMATS, f"one of {', '.join(ANSWER_FORMATS)}")
        _require(self, "max_unknown_share", 0 <= self.max_unknown_share <= 1, "between 0 and 1")
        _require(self, "unknown_window", self.unknown_window >= 1, "at least 1")
        _require(self, "reward_timeout_s", self.reward_timeout_s > 0, "above 0 seconds")
        _require(self, "correct_reward", self.correct_reward > self.wrong_reward, "above wrong_reward")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> VerifierConfig:
        """Build from plain values. Raises ValueError for unknown names and values of a wrong type or range."""
        known = {field.name: field for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"{name}: no such verifier option; known: {', '.join(sorted(known))}")
        return cls(**{name: _typed(name, value, known[name].default) for name, value in values.items()})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> VerifierConfig:
        """Read the JSON object in `OPENRLHF_KTAE_VERIFIER`; defaults if it is not set."""
        text = (os.environ if environ is None else environ).get(CONFIG_VARIABLE, "").strip()
        if not text:
            return cls()
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{CONFIG_VARIABLE} must hold a JSON object, found {text[:80]!r}: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{CONFIG_VARIABLE} must hold a JSON object, found {text[:80]!r}")
        return cls.from_mapping(values)

    def to_env(self) -> dict[str, str]:
        """Return the environment entry that `from_env` reads back."""
        return {CONFIG_VARIABLE: json.dumps(asdict(self))}


def _require(config: VerifierConfig, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} {getattr(config, name)}: is out of range; use {allowed}")


def _typed(name: str, value: Any, default: Any) -> Any:
    """Return `value` in the type of `default`, converting only integers to floats and lists to tuples."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default) and not isinstance(default, tuple):
        return value
    kind = "list of texts" if isinstance(default, tuple) else type(default).__name__
    raise ValueError(f"{name} {value!r}: must be a {kind}")
