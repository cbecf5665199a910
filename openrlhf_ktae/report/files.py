"""Write pages atomically, and escape data so that nothing can break out of the HTML."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checkpoint.files import write_text

ASSETS = Path(__file__).with_name("assets")
# "<" could end the script element, "&" could start an entity, and the two separators end a line in a script.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(path: Path, html: str) -> Path:
    """Write one page, creating its folder. Raises BadOption if writing fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html.encode("utf-8", "replace").decode("utf-8"))  # a title may have undecodable bytes
    except OSError as error:
        with suppress(OSError):
            path.with_name(f".{path.name}.part").unlink()
        raise BadOption(f"{path}: cannot be written ({error.strerror}); give --output another folder") from None
    return path


def page_json(data: Any) -> str:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # escapes a lone surrogate as JSON does


def size_of(text: str) -> int:
    """Return the size of a text in UTF-8 bytes."""
    return len(text.encode("utf-8", "replace"))


def link(name: str) -> str:
    """Return the URL for a link to a file in the same folder."""
    return quote(os.fsencode(name))
