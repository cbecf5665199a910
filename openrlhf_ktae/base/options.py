"""This package's run options, except for options defined next to the code that they configure.

KTAE's are in `ktae/config.py`, the verifier's in `verifier/config.py`, the fault options in `base/faults_config.py`,
dynamic sampling's in `trainer/ppo_utils/group_filter.py`. The text below a field is its help.
"""

from dataclasses import dataclass
from typing import Literal

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class RunOptions:
    """`--run.*`: where a run writes, and when it stops or restarts."""

    dir: str | None = None
    """Write metrics.jsonl, config.yaml and versions.json here; model, checkpoints and TensorBoard files too, unless
    --ckpt.output_dir, --ckpt.path or --logger.tensorboard_dir are set. Default: the value of --ckpt.output_dir"""

    accept_changes: tuple[str, ...] = ()
    """Options that may differ from the checkpoint's when resuming."""

    eval_edges: bool = True
    """Evaluate before the first step and after the last."""

    plan: bool = True
    """Refuse a run that cannot fit into memory, and write plan.txt (see cli.plan)."""

    verbose: bool = False
    """Show the output of all processes."""

    grace_seconds: float = 60
    """After SIGINT or SIGTERM, wait this long for the step to finish and its checkpoint to be written."""

    watchdog_minutes: float = 0
    """Stop and dump the stacks of all processes when no step or evaluation finishes for this long; 0 is off. Startup
    may take 30 minutes, or this value if longer."""

    restarts: int = 0
    """Restart from the last checkpoint when a process of the run dies, at most this many times."""

    dashboard_host: str = LOOPBACK
    """Address of Ray's dashboard and job port if this command starts Ray. Anyone who can reach it can run code here."""


@dataclass(frozen=True)
class PromptOptions:
    """`--data.*` in addition to the host's."""

    long_prompts: Literal["drop", "cut"] = "drop"
    """Prompts that leave no room for a response (--data.max_len minus --rollout.max_new_tokens): drop removes them and
    reports how many; cut keeps the end of each."""

    chat_template_args: tuple[str, ...] = ()
    """Chat template arguments as NAME=VALUE, such as enable_thinking=false."""


@dataclass(frozen=True)
class TrainOptions:
    """`--train.*` in addition to the host's."""

    max_staleness: int | None = None
    """With --train.async_enable: never train on rollouts whose weights are more than this many steps old. Default:
    no limit; the age then depends on --train.async_queue_size and dynamic sampling"""

    replay: str | None = None
    """Train on the rollouts that a run recorded (--ktae.record_rollouts), in the same order, without an engine."""


@dataclass(frozen=True)
class CreditOptions:
    """`--algo.credit.*`: token-level credit on rollout-level advantages, with any estimator.

    An estimator's own options are `--algo.NAME.*`, defined beside its code in `credit/` (KTAE's: `ktae/config.py`).
    """

    base: Literal["group_norm", "dr_grpo", "rloo", "reinforce_baseline"] = "group_norm"
    """Rollout-level advantage to which token-level credit is added."""

    weight: float = 1.0
    """Factor of the credit that is added to the base, at least 0. With 0 the advantages are the base's, bit for bit."""

    shadow: bool = False
    """Train with the rollout-level advantage only, and log the credit that the estimator would have given."""

    shuffle_labels: bool = False
    """Control experiment: give the estimator labels shuffled within each group (ktae, gtpo)."""

    top_tokens: int = 5
    """How many ids with the highest, and with the lowest, mean credit to log each step."""

    file: str | None = None
    """Python file that registers an estimator of your own, for --advantage_estimator custom (docs/estimators.md)."""

    options: str = ""
    """Options of the estimator in --algo.credit.file, as a JSON object: '{"alpha": 0.3}'."""


OLD_CREDIT_NAMES = {name: f"algo.ktae.{name}" for name in ("base", "shadow", "shuffle_labels", "top_tokens")}
"""Old names of options of `CreditOptions`, from when KTAE was the only estimator; they still work."""


@dataclass(frozen=True)
class RecordOptions:
    """`--ktae.*`: the record of rollouts (token ids, scores, advantages with and without K)."""

    record_rollouts: int = 0
    """Record every N steps, to rollouts/ in the run folder; 0 is off."""

    record_max_mb: int = 512
    """Stop recording at this size, in MB."""

    record_groups: int = 0
    """Record only the first N groups of a step; 0 records all."""


@dataclass(frozen=True)
class LossOptions:
    """`--actor.*` in addition to the host's."""

    mask_truncated: bool = False
    """Exclude responses truncated at the length limit from the loss; they still count in their group's statistics."""

    dr_grpo_norm: bool = False
    """Divide the loss summed over tokens by --train.batch_size x --rollout.max_new_tokens instead of the number of
    tokens (Dr. GRPO, arXiv 2503.20783)."""

    recompute_log_probs: bool = False
    """Compute old log-probabilities in a separate pass, even if a batch is one update and could reuse the update's."""
