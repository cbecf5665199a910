"""The token-credit page: self-contained HTML files of at most 3 MB, each with whole groups."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

from openrlhf_ktae.evaluation.rescoring import TopTokens
from openrlhf_ktae.report.credit_data import VARIANTS, add_to_tops, group_data, step_settings
from openrlhf_ktae.run.rollout_record import BadRecord, RecordedGroup

ASSETS = Path(__file__).with_name("assets")
MAX_BYTES = 3_000_000
TOP = 10
# "<" ends no script element, "&" starts no entity, and the two separators are no line ends of a script.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_credit_pages(
    groups: Iterable[RecordedGroup],
    folder: Path,
    title: str,
    name: str = "tokens",
    max_groups: int | None = None,
    taken: Collection[str] = (),
) -> list[Path]:
    """Write `tokens.html`, and `tokens-2.html` and so on where one file would be too large; return the paths.

    Args:
        groups: recorded groups of one run, in order.
        folder: where the files go.
        title: shown by the browser.
        name: stem of the files.
        max_groups: show the first ones of each step only; its top tokens are those of all its groups.
        taken: names of files in `folder` that are left alone.

    Raises:
        BadRecord: there is no group.
    """
    tops: dict[int, dict[str, TopTokens]] = {}
    settings: dict[str, Any] | None = None
    packed: list[list[dict[str, Any]]] = []
    used = MAX_BYTES
    room = MAX_BYTES - sum(path.stat().st_size for path in ASSETS.iterdir()) - 200_000  # for the tops of the steps
    seen: Counter[int] = Counter()
    for group in groups:
        settings = settings or step_settings(group.about)
        add_to_tops(group, tops.setdefault(group.step, {variant: TopTokens() for variant in VARIANTS}))
        seen[group.step] += 1
        if max_groups is not None and seen[group.step] > max_groups:
            continue
        for part in _parts(group_data(group), room):
            size = len(_json(part))
            if used + size > room:
                packed.append([])
                used = 0
            packed[-1].append(part)
            used += size
    if settings is None:
        raise BadRecord("there is no recorded group to show")
    shown = {
        step: {variant: {"highest": one.top(TOP), "lowest": one.top(TOP, False)} for variant, one in of_step.items()}
        for step, of_step in tops.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    names = (f"{name}.html" if number == 1 else f"{name}-{number}.html" for number in itertools.count(1))
    files = list(itertools.islice((one for one in names if one not in taken), len(packed)))
    for i, of_file in enumerate(packed):
        steps = {one["step"] for one in of_file}
        data = {
            "settings": settings,
            "groups": of_file,
            "tops": {step: of_step for step, of_step in shown.items() if step in steps},
            "files": files,
            "file": i,
        }
        (folder / files[i]).write_text(page(data, title), encoding="utf-8")
    return [folder / file for file in files]


def _parts(data: dict[str, Any], room: int) -> Iterator[dict[str, Any]]:
    """Yield a group whole, or its rollouts in several parts where even a file of its own is too small."""
    if len(_json(data)) <= room or len(data["rollouts"]) == 1:
        yield data
        return
    half = len(data["rollouts"]) // 2
    for rows in (slice(None, half), slice(half, None)):
        variants = {
            name: {**one, "shifts": one["shifts"][rows] if one["shifts"] else None}
            for name, one in data["variants"].items()
        }
        yield from _parts({**data, "rollouts": data["rollouts"][rows], "variants": variants}, room)


def page(data: dict[str, Any], title: str) -> str:
    """Return the HTML of one file; the browser runs the page's own script alone (Content-Security-Policy)."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("credit.css", "credit.js"))
    return Template((ASSETS / "credit.html").read_text(encoding="utf-8")).substitute(
        title=_text(title),
        style=style,
        script=script,
        style_hash=_sha256(style),
        script_hash=_sha256(script),
        data=_json(data),
    )


def _json(data: Any) -> str:
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate as JSON writes it


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
