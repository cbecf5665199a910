"""Options of `--faults.*`."""

from dataclasses import dataclass
from typing import Literal

RETRIES_VARIABLE = "OPENRLHF_KTAE_ROLLOUT_RETRIES"  # a variable, because engines do not get the options
SERVER_VARIABLE = "OPENRLHF_KTAE_REWARD_SERVER"  # "SECONDS TRIES" of one query, for the same reason


@dataclass(frozen=True)
class FaultsConfig:
    """When a run continues and when it stops after faults."""

    max_skipped_updates: int = 3
    """Stop after this many consecutive skipped updates; 0 never stops. An update is skipped when a loss, gradient,
    score or advantage is not finite."""

    rollout_retries: int = 1
    """How many times to regenerate the rollouts of a prompt when the agent raises. An error of a reward file is an
    unknown verdict instead (--verifier.max_unknown_share)."""

    max_failed_share: float = 0.1
    """Stop when more than this share of the last prompts (64 to 256 of them) failed after all retries."""

    reward_tries: int = 6
    """How many times to query a reward server (--reward.remote_url http://...) before the rollout fails, with pauses of
    1, 2, 4, ... seconds between tries."""

    reward_timeout_s: float = 180.0
    """Timeout of one query to a reward server, in seconds."""

    engine_restarts: int = 3
    """How many times to restart a dead vLLM engine; its lost prompts are regenerated."""

    model_restarts: int = 3
    """How many times to restart a dead process of the reference or reward model; lost forward passes are repeated."""

    min_entropy: float | None = None
    """Collapse: mean entropy of the policy below this (needs --actor.entropy_coef, which may be 0)."""

    max_length: float | None = None
    """Collapse: mean response length in tokens above this."""

    max_repetition: float | None = None
    """Collapse: share of response tokens that complete a 4-gram already seen in the same response, above this."""

    max_kl: float | None = None
    """Collapse: KL divergence from the reference model (or from the rollout policy if there is none) above this."""

    min_mixed_share: float | None = None
    """Collapse: share of groups with both right and wrong rollouts below this."""

    collapse_action: Literal["warn", "checkpoint", "stop"] = "warn"
    """What to do on a collapse: record a warning; also write a checkpoint; or write a checkpoint and stop."""

    collapse_patience: int = 3
    """Number of consecutive steps in which a metric must be past its limit."""
