"""Options of `--faults.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RETRIES_VARIABLE = "OPENRLHF_KTAE_ROLLOUT_RETRIES"  # for engines, which do not see the options
SERVER_VARIABLE = "OPENRLHF_KTAE_REWARD_SERVER"  # "SECONDS TRIES" of one query, for the same reason
AT_LEAST_0 = ("max_skipped_updates", "rollout_retries", "engine_restarts", "model_restarts", "max_length", "max_kl")
SHARES = ("max_failed_share", "max_repetition", "min_mixed_share")


@dataclass(frozen=True)
class FaultsConfig:
    """When a run goes on, and when it stops."""

    max_skipped_updates: int = 3
    """Steps in a row whose update is skipped, because a loss, gradient, score or advantage is not finite, after which
    the run stops; 0 never stops it."""

    rollout_retries: int = 1
    """Times that the rollouts of a prompt are generated again when the agent raises. An error of a reward file is an
    unknown verdict instead (--verifier.max_unknown_share)."""

    max_failed_share: float = 0.1
    """Share of prompts whose rollouts failed for good, over the last 64 or more, above which the run stops."""

    reward_tries: int = 6
    """Times that a reward server (--reward.remote_url http://...) is asked about a rollout, with pauses of 1, 2, 4, ...
    seconds between, before the rollout has failed."""

    reward_timeout_s: float = 180.0
    """Seconds that a reward server may take for one answer."""

    engine_restarts: int = 3
    """Times that a dead vLLM engine is started again; its lost prompts are generated again."""

    model_restarts: int = 3
    """Times that a process of the reference or reward model that died is started again; lost passes are repeated."""

    min_entropy: float | None = None
    """Collapse: mean entropy of the policy below this (needs --actor.entropy_coef, which may be 0)."""

    max_length: float | None = None
    """Collapse: mean response length in tokens above this."""

    max_repetition: float | None = None
    """Collapse: share of response tokens that end a 4-gram which was there before in the same response, above this."""

    max_kl: float | None = None
    """Collapse: KL divergence from the reference model (without one, from the rollout policy) above this."""

    min_mixed_share: float | None = None
    """Collapse: share of groups with both right and wrong rollouts below this."""

    collapse_action: Literal["warn", "checkpoint", "stop"] = "warn"
    """What a collapse does: a note in the record, a checkpoint too, or a checkpoint and the end of the run."""

    collapse_patience: int = 3
    """Steps in a row that a figure must be beyond its limit."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_0:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} {value}: must be at least 0")
        if self.reward_tries < 1 or not self.reward_timeout_s > 0:
            name = "reward_tries" if self.reward_tries < 1 else "reward_timeout_s"
            raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        for name in SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} {value}: must be a share from 0 to 1")
        if self.collapse_patience < 1:
            raise ValueError(f"collapse_patience {self.collapse_patience}: must be at least 1")
