"""One run at a time writes below `--ckpt.path`: a second would delete what the first is writing."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path

from openrlhf_ktae.checkpoint.resume import CannotResume

LOCK = ".lock"
HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)
_held: dict[str, int] = {}  # path -> descriptor; the kernel lets go of it when this process ends, however it does


class InUse(CannotResume):
    """Another run writes its checkpoints there; the message says which and the way out."""


def hold(root: str | Path) -> None:
    """Hold the folder of all checkpoints as long as this process lives; a second call does nothing.

    A file system without locks (some network disks), or a folder that cannot be made, is left alone.

    Raises:
        InUse: another process holds it.
    """
    root = Path(root).absolute()
    if str(root) in _held:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
        os.close(descriptor)
        if error.errno not in HELD_BY_ANOTHER:
            return
        raise InUse(
            f"--ckpt.path {root}: another run ({holder or 'unknown'}) writes its checkpoints there; end it first, or "
            "give another --ckpt.path (or --run.dir)"
        ) from None
    _held[str(root)] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # a full disk; who holds it is for people
        pass
