"""What TensorBoard and W&B must hold after a run."""

from __future__ import annotations

WANDB_KEY = "5ec2e7" * 6 + "abcd"


def assert_trackers_have(run, folder):
    """Check that TensorBoard and W&B (offline) received every recorded figure."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((run.directory / "tensorboard").iterdir()))).Reload()
    offline = b"".join(path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb"))
    figures = {f"train/{name}" for row in run.steps for name in row}
    figures |= {f"eval/{name}" for row in run.evaluations.values() for name in row}
    figures -= {
        f"{kind}/{name}" for kind in ("train", "eval") for name in ("kind", "step", "time", "when", "key_tokens")
    }
    assert len(figures) > 40
    assert figures <= set(events.Tags()["scalars"])
    assert [name for name in sorted(figures) if name.encode() not in offline] == []
