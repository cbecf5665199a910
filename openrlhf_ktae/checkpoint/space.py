"""Is there room for one more checkpoint? Asked before it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from openrlhf_ktae.checkpoint.folder import listed

GROWTH = 1.05  # buffers differ from step to step
ADAM_BYTES = 12  # the 32-bit parameter and two moments
GIB = 2**30


class DiskFull(OSError):
    """There is not enough room for a checkpoint; the message says how much there is and what helps."""


def expected_bytes(
    root: Path, parameters: int | None, parameter_bytes: int, export: bool, trained: int | None = None
) -> int:
    """Return the size of the next checkpoint: that of the last one, else counted from the model's parameters.

    Args:
        root: the folder of all checkpoints.
        parameters: of the model; None where unknown, which expects nothing.
        parameter_bytes: of one parameter.
        export: the model is saved for transformers as well.
        trained: parameters with states of Adam; None where all have.
    """
    found = listed(root)[0]
    if found:
        return round(GROWTH * found[0].manifest.bytes)
    count = parameters or 0
    return (count if trained is None else trained) * ADAM_BYTES + count * parameter_bytes * (2 if export else 1)


def require_space(root: Path, needed: int) -> None:
    """Raise `DiskFull` if the disk of `root` has not `needed` bytes left."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DiskFull(
            f"--ckpt.path {root}: a checkpoint takes {in_units(needed)} and the disk has {in_units(free)} left. Free "
            "some, lower --ckpt.max_num, or set --ckpt.max_mem (GiB); the new one is whole before an old one goes"
        )


def in_units(count: float) -> str:
    """Return bytes as GiB, or MiB below one."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
