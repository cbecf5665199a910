"""This package's own options of a run, beside those that stand with the code they configure.

KTAE's are in `ktae/config.py`, the verifier's in `verifier/config.py`, those of faults in `base/faults_config.py`,
those of dynamic sampling in `trainer/ppo_utils/group_filter.py`. The text below a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class RunOptions:
    """`--run.*`: where a run writes, and when it ends or starts again."""

    dir: str | None = None
    """metrics.jsonl, config.yaml and versions.json go here; model, checkpoints and TensorBoard files too unless
    --ckpt.output_dir, --ckpt.path or --logger.tensorboard_dir say otherwise. Default: the value of --ckpt.output_dir"""

    accept_changes: tuple[str, ...] = ()
    """Options that may differ from the checkpoint's when a run resumes."""

    eval_edges: bool = True
    """Evaluate before the first step and after the last."""

    plan: bool = True
    """Refuse what cannot fit into memory, and write plan.txt (see cli.plan)."""

    verbose: bool = False
    """Show what all processes print."""

    grace_seconds: float = 60
    """After SIGINT or SIGTERM, wait this long for the step to end and its checkpoint to be written."""

    watchdog_minutes: float = 0
    """Stop, with the stacks of all processes, when no step or evaluation has ended for this long; 0 is off. The start
    may take 30 minutes, or this value if it is longer."""

    restarts: int = 0
    """Restart from the last checkpoint when a process of the run dies, at most this many times."""

    dashboard_host: str = LOOPBACK
    """Address of Ray's dashboard and job port if this command starts Ray. Whoever reaches them can run code here."""


@dataclass(frozen=True)
class PromptOptions:
    """`--data.*` beside the host's."""

    long_prompts: Literal["drop", "cut"] = "drop"
    """Prompts that leave no room for a response (--data.max_len minus --rollout.max_new_tokens): drop leaves them out
    and reports how many, cut keeps their ends."""

    chat_template_args: tuple[str, ...] = ()
    """Arguments of the chat template as NAME=VALUE, such as enable_thinking=false."""


@dataclass(frozen=True)
class CreditOptions:
    """`--algo.credit.*`: token-level credit on rollout-level advantages, whatever the estimator.

    An estimator's own options are `--algo.NAME.*`, beside its code in `credit/` (KTAE's: `ktae/config.py`).
    """

    base: Literal["group_norm", "dr_grpo", "rloo", "reinforce_baseline"] = "group_norm"
    """Rollout-level advantage on which token-level credit stands."""

    weight: float = 1.0
    """Factor on what the estimator adds to the base, at least 0. With 0 the advantages are the base's, bit for bit."""

    shadow: bool = False
    """Train with the rollout-level advantage only, and log what the estimator would have given."""

    shuffle_labels: bool = False
    """Control experiment: give the estimator labels shuffled within each group (ktae, gtpo)."""

    top_tokens: int = 5
    """Ids of highest and lowest mean credit logged each step."""

    file: str | None = None
    """Python file that registers an estimator of your own, for --advantage_estimator custom (docs/estimators.md)."""


OLD_CREDIT_NAMES = {name: f"algo.ktae.{name}" for name in ("base", "shadow", "shuffle_labels", "top_tokens")}
"""Names of fields of `CreditOptions` from when KTAE was the only estimator; they still work."""


@dataclass(frozen=True)
class RecordOptions:
    """`--ktae.*`: the record of rollouts (token ids, scores, advantages with and without K)."""

    record_rollouts: int = 0
    """Record every N steps, to rollouts/ of the run; 0 is off."""

    record_max_mb: int = 512
    """Stop recording at this size, in MB."""

    record_groups: int = 0
    """Record the first N groups of a step; 0 records all."""


@dataclass(frozen=True)
class LossOptions:
    """`--actor.*` beside the host's."""

    mask_truncated: bool = False
    """Leave responses that were cut off at the length limit out of the loss; their group's statistics keep them."""

    dr_grpo_norm: bool = False
    """Divide the loss summed over tokens by --train.batch_size x --rollout.max_new_tokens instead of the number of
    tokens (Dr. GRPO, arXiv 2503.20783)."""

    recompute_log_probs: bool = False
    """Compute old log-probabilities in a pass of their own even where a batch is one update and the update's serve."""
