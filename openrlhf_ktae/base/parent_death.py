"""Have the kernel signal this process when its parent dies."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)  # loaded at import, because a forked child must not load it before exec


def signal_on_parent_death(number: int) -> None:
    """Ask the kernel to send `number` to this process when its parent dies; does nothing outside Linux."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
