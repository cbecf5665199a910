"""The README's map of the package names every file, and no other."""

from __future__ import annotations

import re


def test_every_file_of_the_package_is_on_the_map(root):
    text = (root / "README.md").read_text()
    lines = text.split("<details>")[1].split("```")[1].splitlines()[2:]
    room, named = "", []
    for line in lines:
        words, *half_line = re.split(r" {2,}", line.strip())
        if words.endswith("/"):
            room = words
            continue
        if words == "host.py":
            room = ""
        files = words.split(", ")
        assert half_line or all((root / "openrlhf_ktae/cli" / file).is_file() for file in files), line
        named += [room + file for file in files]
    package = root / "openrlhf_ktae"
    there = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(named) == sorted(there)
