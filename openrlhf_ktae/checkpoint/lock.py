"""Only one run at a time may write below `--ckpt.path`: another would delete its unfinished files."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from openrlhf_ktae.base.errors import Refusal

LOCK = ".lock"
HELD_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EACCES)
_held: dict[str, int] = {}  # path -> descriptor; the kernel releases the lock when this process ends


def hold(root: str | Path) -> None:
    """Lock the folder of all checkpoints until this process ends; a second call does nothing.

    Also does nothing if the file system has no locks (some network disks), or the folder cannot be created. Raises
    Refusal if another process holds the lock.
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
        raise Refusal(
            f"--ckpt.path {root}: another run ({holder or 'unknown'}) writes its checkpoints there; stop it first, or "
            "give another --ckpt.path (or --run.dir)"
        ) from None
    _held[str(root)] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError:  # a full disk; the holder's name is only informative
        pass
