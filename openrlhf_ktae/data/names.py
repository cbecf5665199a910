"""Lists of data sets, as in `--data.prompt_dataset A,B@FOLDER`; existing paths may contain commas and @.

The host splits at every comma and @, so such paths are passed to it as symlinks without them (`accept_any_path`).
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


def entries(names: str) -> list[tuple[str, str]]:
    """Return the path or name of each data set in a list, and the subfolder after its @ (empty without one)."""
    parts, found = names.split(","), []
    while parts:
        counts = range(len(parts), 1, -1)
        count = next((count for count in counts if os.path.exists(",".join(parts[:count]).strip())), 1)
        found.append(_below(",".join(parts[:count]).strip()))
        parts = parts[count:]
    return found


def _below(entry: str) -> tuple[str, str]:
    """Split at the last @ that follows an existing path. A missing file in an existing folder is not split."""
    if "@" not in entry or os.path.exists(entry):
        return entry, ""
    at = entry.rfind("@")
    while at > 0:
        if os.path.exists(entry[:at].strip()):
            return entry[:at].strip(), entry[at + 1 :].strip()
        at = entry.rfind("@", 0, at)
    if os.sep in entry.partition("@")[2] and os.path.isdir(os.path.dirname(entry)):
        return entry, ""
    name, _, below = entry.partition("@")
    return name.strip(), below.strip()


def accept_any_path(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `load`, the host's reader of a list of data sets, to accept paths with commas and @."""
    if getattr(load, "accepts_any_path", False):
        return load

    @wraps(load)
    def loaded(datasets: str, *args: Any, **kwargs: Any) -> Any:
        return load(",".join(_linked(name, below) for name, below in entries(datasets)), *args, **kwargs)

    loaded.accepts_any_path = True  # type: ignore[attr-defined]
    return loaded


def _linked(name: str, below: str) -> str:
    if ("," in name or "@" in name) and os.path.exists(name):
        folder = tempfile.mkdtemp(prefix="data-")  # the data stays mapped from here until this process exits
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / f"data{Path(name).suffix}"
        link.symlink_to(os.path.abspath(name))
        name = str(link)
    return f"{name}@{below}" if below else name
