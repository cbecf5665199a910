"""Pages as files: written whole or not at all, and data inside HTML that nothing can break out of."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openrlhf_ktae.base.places import unusable
from openrlhf_ktae.checkpoint.files import write_text

ASSETS = Path(__file__).with_name("assets")
# "<" ends no script element, "&" starts no entity, and the two separators are no line ends of a script.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class BadOutput(ValueError):
    """A page cannot be written where it should go; the message names the place and the way out."""


def refuse_unusable(folder: Path) -> None:
    """Check that pages can be written to `folder`, which need not exist, before anything is computed.

    Raises:
        BadOutput: it is a file, is below one, or cannot be written to.
    """
    if reason := unusable(folder):
        raise BadOutput(f"--output {folder}: {reason}")


def write_page(path: Path, html: str) -> Path:
    """Write one page, with its folder.

    Raises:
        BadOutput: the file system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html.encode("utf-8", "replace").decode("utf-8"))  # a title may hold a name's odd bytes
    except OSError as error:
        with suppress(OSError):
            path.with_name(f".{path.name}.part").unlink()
        raise BadOutput(f"{path}: cannot be written ({error.strerror}); give --output another folder") from None
    return path


def page_json(data: Any) -> str:
    """Return JSON that may stand in a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate as JSON writes it


def size_of(text: str) -> int:
    """Return the bytes that a text takes in a file."""
    return len(text.encode("utf-8", "replace"))


def link(name: str) -> str:
    """Return what a page links a file beside it with."""
    return quote(os.fsencode(name))
