"""Return memory of this process to the system between the phases of a step: engine and trainer take turns."""

import ctypes
import mmap
from contextlib import suppress
from typing import Any

MADV_DONTNEED = 4  # of Linux


def trim() -> None:
    """Return the heap's free memory to the system; otherwise freed tensors below 32 MiB stay in the heap."""
    with suppress(OSError, AttributeError):  # only glibc has `malloc_trim`
        ctypes.CDLL(None).malloc_trim(0)


def forget(tensor: Any) -> None:
    """Return the whole pages of a CPU tensor's storage to the system; they read as 0 until written to."""
    storage = tensor.untyped_storage()
    first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)
