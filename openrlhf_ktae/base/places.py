"""Can a folder be at a place?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NAME_BYTES = 255  # of one part of a path, in all usual file systems


def unusable(place: str | Path) -> str:
    """Return why no folder can be at `place`, in words; empty where one can. A folder is made on trial, and removed."""
    place = os.fspath(place)
    if "\0" in place or any(len(os.fsencode(part)) > NAME_BYTES for part in Path(place).parts):
        return f"no path: a part of it has more than {NAME_BYTES} bytes, or none at all; give a shorter one"
    path = Path(place).absolute()
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        return f"{nearest} is a file; give a folder"
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest))
    except OSError:
        return f"nothing can be written in {nearest}; give another folder"
    return ""
