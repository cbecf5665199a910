"""Python files that a user names in an option."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_folders: list[str] = []
_helpers: set[str] = set()


@contextmanager
def with_its_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the file `path`, loaded in this context, import from its own folder, as a script can.

    Runs of a comparison share processes, and their files may import different helpers of the same name. So helpers
    that an earlier file imported are imported again, from this file's folder first.
    """
    folder = os.path.dirname(os.path.abspath(path))
    for name in _helpers:
        sys.modules.pop(name, None)
    _folders[:] = [folder, *(one for one in _folders if one != folder)]
    sys.path[:] = [*(one for one in sys.path if one not in _folders), *_folders]
    before = set(sys.modules)
    try:
        yield
    finally:
        added = {name.partition(".")[0] for name in sys.modules.keys() - before} - before
        own = {name for name in added if _place(name) in _folders}
        _helpers.update(name for name in sys.modules.keys() - before if name.partition(".")[0] in own)


def _place(name: str) -> str:
    if not (file := getattr(sys.modules[name], "__file__", None)):
        return ""
    folder = os.path.dirname(os.path.abspath(file))
    return os.path.dirname(folder) if os.path.basename(file) == "__init__.py" else folder
