"""Check that the disk has space for a checkpoint before it is written."""

import shutil
from pathlib import Path

from openrlhf_ktae.base.gpu_machine import GIB
from openrlhf_ktae.checkpoint.folder import listed

GROWTH = 1.05  # buffers differ from step to step
ADAM_BYTES = 12  # the 32-bit parameter and two moments


class DiskFull(OSError):
    """Not enough disk space for a checkpoint; the message says how much is free and the way out."""


def expected_bytes(
    root: Path, parameters: int | None, parameter_bytes: int, export: bool, trained: int | None = None
) -> int:
    """Estimate the size of the next checkpoint from the last one, or from the model's parameters if there is none.

    Args:
        root: the folder of all checkpoints.
        parameters: number of the model's parameters; None (unknown) counts as 0.
        parameter_bytes: bytes per parameter.
        export: whether the model is also saved for transformers.
        trained: number of parameters with Adam states; None for all.
    """
    found = listed(root)[0]
    if found:
        return round(GROWTH * found[0].manifest.bytes)
    count = parameters or 0
    return (count if trained is None else trained) * ADAM_BYTES + count * parameter_bytes * (2 if export else 1)


def require_space(root: Path, needed: int) -> None:
    """Raise `DiskFull` if the disk of `root` has less than `needed` bytes left."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DiskFull(
            f"--ckpt.path {root}: a checkpoint takes {in_units(needed)} and the disk has {in_units(free)} left. Free "
            "some, lower --ckpt.max_num, or set --ckpt.max_mem (GiB); old ones are deleted after the new one is written"
        )


def in_units(count: float) -> str:
    """Format bytes in GiB, or in MiB below 1 GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
