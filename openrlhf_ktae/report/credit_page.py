"""The token-credit page: self-contained HTML files of at most 3 MB; larger groups are split."""

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from openrlhf_ktae.record.recorded import BadRecord, RecordedGroup
from openrlhf_ktae.record.rollouts import NEEDED
from openrlhf_ktae.report.credit_data import VARIANTS, group_data, step_settings, values_of
from openrlhf_ktae.report.credit_parts import parts
from openrlhf_ktae.report.files import ASSETS, link, page_json, size_of, write_page
from openrlhf_ktae.report.rescoring import TopTokens

MAX_BYTES = 3_000_000
TOP = 10
TOP_TEXT = 40  # characters kept of a top token's text; the page shows fewer
# Upper bound for the top tokens of one step: an escaped character takes 6 bytes, a token's figures less than 100.
TOPS_BYTES = 2 * len(VARIANTS) * (TOP * (6 * TOP_TEXT + 100) + 50)
FILES_BYTES = 50_000  # for the links to all files, which each file has
TAG_BYTES = 100  # brackets and commas around groups and tops


def write_credit_pages(
    groups: Iterable[RecordedGroup],
    folder: Path,
    title: str,
    name: str = "tokens",
    max_groups: int | None = None,
    taken: Collection[str] = (),
) -> list[Path]:
    """Write `tokens.html`, and `tokens-2.html` and so on if one file would be too large; return the paths.

    Args:
        groups: recorded groups of one run, in order.
        folder: output folder.
        title: page title.
        name: stem of the file names.
        max_groups: show only this many groups of each step, from the first; top tokens still cover all groups.
        taken: file names in `folder` that must not be overwritten.

    Raises:
        BadRecord: there is no group, or a single token does not fit.
        BadOption: the pages cannot be written there.
    """
    tops: dict[int, dict[str, TopTokens]] = {}
    settings: dict[str, Any] | None = None
    made: list[tuple[int, str]] = []
    room = 0
    seen: Counter[int] = Counter()
    for group in groups:
        if settings is None:
            settings = step_settings(group.about, NEEDED.keys() & group.rows[0].keys())
            room = MAX_BYTES - size_of(_document(settings, [], [], [], 0, title)) - FILES_BYTES - TAG_BYTES
            if room <= TOPS_BYTES:
                raise BadRecord("the run's settings do not fit on a page")
        values = values_of(group)
        for variant, of_step in tops.setdefault(group.step, {one: TopTokens() for one in VARIANTS}).items():
            of_step.add(group, values[variant])
        seen[group.step] += 1
        if max_groups is None or seen[group.step] <= max_groups:
            made += [(group.step, part) for part in parts(group_data(group, values), room - TOPS_BYTES)]
    if settings is None:
        raise BadRecord("there are no recorded groups to show")
    shown = {step: f'"{step}":{page_json(_tops(of_step))}' for step, of_step in tops.items()}
    packed = _packed(made, shown, room)
    names = (f"{name}.html" if number == 1 else f"{name}-{number}.html" for number in itertools.count(1))
    files = list(itertools.islice((one for one in names if one not in taken), len(packed)))
    links = [link(file) for file in files]
    if size_of(page_json(links)) > FILES_BYTES:
        raise BadRecord(f"this would make {len(files)} pages of {MAX_BYTES:,} bytes; show fewer groups with --groups N")
    for i, of_file in enumerate(packed):
        steps = dict.fromkeys(step for step, _ in of_file)
        parts_of_file = [part for _, part in of_file]
        html = _document(settings, parts_of_file, [shown[step] for step in steps], links, i, title)
        write_page(folder / files[i], html)
    return [folder / file for file in files]


def _tops(of_step: Mapping[str, TopTokens]) -> dict[str, Any]:
    """Return, for each variant, the tokens with the highest K above 0 and the lowest K below 0."""
    return {
        variant: {
            "highest": [_short(token) for token in one.top(TOP) if token["k"] > 0],
            "lowest": [_short(token) for token in one.top(TOP, False) if token["k"] < 0],
        }
        for variant, one in of_step.items()
    }


def _short(token: dict[str, Any]) -> dict[str, Any]:
    text = token["text"] or ""
    return {**token, "text": text if len(text) <= TOP_TEXT else text[: TOP_TEXT - 1] + "…"}


def _packed(made: Iterable[tuple[int, str]], tops: Mapping[int, str], room: int) -> list[list[tuple[int, str]]]:
    """Pack (step, part) into files of at most `room` bytes, including the top tokens of their steps."""
    files: list[list[tuple[int, str]]] = []
    steps: set[int] = set()
    used = 0
    for step, part in made:
        size, top = size_of(part) + 1, size_of(tops[step]) + 1
        more = size + (0 if step in steps else top)
        if not files or used + more > room:
            files.append([])
            steps, used, more = set(), 0, size + top
        files[-1].append((step, part))
        steps.add(step)
        used += more
    return files


def _document(
    settings: Mapping[str, Any], groups: list[str], tops: list[str], files: list[str], file: int, title: str
) -> str:
    """Return the HTML of one file; `groups` and `tops` are already JSON.

    Its Content-Security-Policy only allows its own script.
    """
    data = (
        f'{{"settings":{page_json(settings)},"groups":[{",".join(groups)}],"tops":{{{",".join(tops)}}},'
        f'"files":{page_json(files)},"file":{file}}}'
    )
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("credit.css", "credit.js"))
    return Template((ASSETS / "credit.html").read_text(encoding="utf-8")).substitute(
        title=escape(title, quote=False),
        style=style,
        script=script,
        style_hash=_sha256(style),
        script_hash=_sha256(script),
        data=data,
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
