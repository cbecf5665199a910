"""Give memory of this process back to Linux between the phases of a step: engine and trainer take turns.

Less than `WORTHWHILE` bytes are kept: a small model's update would spend a third of its time on page faults.
"""

import ctypes
import mmap
from contextlib import suppress
from typing import Any

MADV_DONTNEED = 4  # of Linux
WORTHWHILE = 128 * 2**20


class _HeapInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; the field before the last is the heap's free memory."""

    _fields_ = (*((f"_{i}", ctypes.c_size_t) for i in range(8)), ("free", ctypes.c_size_t), ("_9", ctypes.c_size_t))


def trim() -> None:
    """Give the heap's free memory back; otherwise freed tensors below 32 MiB stay in the heap."""
    with suppress(OSError, AttributeError):  # only glibc has these functions
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _HeapInfo
        if libc.mallinfo2().free >= WORTHWHILE:
            libc.malloc_trim(0)


def forget(*tensors: Any) -> None:
    """Give back the whole pages of CPU tensors' storages; their values read as 0 until they are written."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    if sum(storage.nbytes() for storage in storages) < WORTHWHILE:
        return
    for storage in storages:
        first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (storage.data_ptr() + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)
