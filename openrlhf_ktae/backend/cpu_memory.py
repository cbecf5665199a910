"""Memory of a process that goes back to the system between the phases of a step: engine and trainer take turns."""

import ctypes
import mmap
from contextlib import suppress
from typing import Any

MADV_DONTNEED = 4  # of Linux


def trim() -> None:
    """Return memory that the heap has free; freed tensors below 32 MiB stay there otherwise."""
    with suppress(OSError, AttributeError):  # only glibc has `malloc_trim`
        ctypes.CDLL(None).malloc_trim(0)


def forget(tensor: Any) -> None:
    """Return the memory of a CPU tensor's storage, but for its first and last page; it reads as 0 until written to."""
    storage = tensor.untyped_storage()
    first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)
