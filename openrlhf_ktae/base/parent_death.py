"""A signal for this process when its parent dies."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: a forked child that has not executed yet must not load it


def signal_on_parent_death(number: int) -> None:
    """Ask the kernel to send `number` to this process when its parent dies; does nothing outside Linux."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
