"""The mixins of both trainers, in order: a call passes from the first to the last, then to the host."""

from openrlhf_ktae.trainer.checkpointing import CheckpointingTrainer
from openrlhf_ktae.trainer.collapse import CollapseTrainer
from openrlhf_ktae.trainer.ending import EndingTrainer
from openrlhf_ktae.trainer.nonfinite import SkippingTrainer
from openrlhf_ktae.trainer.recording import RecordingTrainer
from openrlhf_ktae.trainer.sampling_schedule import SamplingTrainer


class GuardedTrainer(
    EndingTrainer, CollapseTrainer, SkippingTrainer, SamplingTrainer, CheckpointingTrainer, RecordingTrainer
):
    """Each mixin has one concern and adds its own state to `training_state`; docs/architecture.md draws them."""
