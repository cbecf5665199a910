"""Check whether a folder can be created at a path."""

import os
import tempfile
from pathlib import Path

NAME_BYTES = 255  # of one part of a path, in all usual file systems


def unusable(place: str | Path) -> str:
    """Return why no folder can be created at `place`; empty if one can. Creates and removes a temporary folder."""
    place = os.fspath(place)
    if "\0" in place or any(len(os.fsencode(part)) > NAME_BYTES for part in Path(place).parts):
        return f"not a valid path: a part has more than {NAME_BYTES} bytes, or there is a null byte; give a shorter one"
    path = Path(place).absolute()
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        return f"{nearest} is a file; give a folder"
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest))
    except OSError:
        return f"{nearest} is not writable; give another folder"
    return ""
