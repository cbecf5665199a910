"""Grade responses in chunks, so that memory does not grow with their number."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import openrlhf_ktae
from openrlhf_ktae import verifier as verifier_package
from openrlhf_ktae.base.host import installed
from openrlhf_ktae.verifier import Verifier
from openrlhf_ktae.verifier.formats import keeps_format

CHUNK = 256  # responses per call of the verifier, shared among its workers
STREAM_CHUNK = 16  # during generation, so that progress is visible and a kill loses little
GRADER_PACKAGES = ("mpmath",)


@dataclass(frozen=True)
class Response:
    """One response to one problem, before grading."""

    benchmark: str
    id: str
    sample: int
    gold: Any
    response: str
    problem: str | None = None
    tokens: int | None = None
    truncated: bool | None = None
    opening: str = ""
    """The part of the response that the prompt already contains (`opening_of`); it is judged with the response."""


def graded(
    responses: Iterable[Response], verifier: Verifier, require_tags: Sequence[str] = (), size: int = CHUNK
) -> Iterator[dict[str, Any]]:
    """Yield one row for each response, in order.

    A row has the fields of `Response` (without `opening`), `characters`, `verdict` (correct, wrong, unknown), `reason`,
    `extracted` (the answer as written, or None) and `format` (whether the response has each of `require_tags` once and
    exactly one answer).
    """
    stream = iter(responses)
    while chunk := list(islice(stream, size)):
        verdicts = verifier.verify_many((one.gold, one.opening + one.response) for one in chunk)
        for one, verdict in zip(chunk, verdicts, strict=True):
            row = asdict(one)
            opening = row.pop("opening")
            yield row | {
                "characters": len(one.response),
                "verdict": verdict.status,
                "reason": verdict.reason,
                "extracted": verdict.extracted,
                "format": keeps_format(opening + one.response, require_tags, require_single_answer=True),
            }


@lru_cache(maxsize=1)
def grader() -> dict[str, str]:
    """Return name, versions and hash of the grader; results with the same hash were judged by the same code."""
    digest = hashlib.sha256()
    root = Path(next(iter(verifier_package.__path__)))
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    libraries = {name: installed(name) or "absent" for name in GRADER_PACKAGES}
    digest.update(repr(sorted(libraries.items())).encode())
    own = openrlhf_ktae.__version__
    return {"name": "openrlhf_ktae.verifier", "version": own, "hash": digest.hexdigest()[:16], **libraries}
