"""Packages form layers: a package imports only from those before it in `LAYERS`, lazy imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "openrlhf_ktae"
ROOT = Path(__file__).parents[2] / PACKAGE
LAYERS = (
    "base",
    "data",
    "ktae",
    "credit",
    "memory",
    "verifier",
    "figures",
    "checkpoint",
    "record",
    "processes",
    "backend",
    "checks",
    "trainer",
    "evaluation",
    "launch",
    "compare",
    "report",
    "selftest",
    "adapters",
    "cli",
)
"""Lowest first; docs/architecture.md says what each package holds."""


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and target of each import from another of our packages; `package` resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith(f"{PACKAGE}.") and (parts := name.split("."))[1] != package.split(".")[1]:
                yield node.lineno, parts[1]


def upward(path: Path, source: str) -> list[str]:
    """Return `file:line: from -> to` for each import that goes up or sideways."""
    relative = path.relative_to(ROOT)
    package = ".".join((PACKAGE, *relative.parts[:-1]))
    own = relative.parts[0]
    return [
        f"{PACKAGE}/{relative}:{line}: {own} -> {other}"
        for line, other in imported(source, package)
        if other not in LAYERS or LAYERS.index(other) >= LAYERS.index(own)
    ]


def test_every_package_is_a_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(LAYERS)


def test_imports_go_down_only():
    modules = [path for path in ROOT.rglob("*.py") if path.parent != ROOT]
    found = [arrow for path in modules for arrow in upward(path, path.read_text(encoding="utf-8"))]
    assert found == [], "\n".join(found)


def test_an_import_that_goes_up_is_found_with_its_line():
    lazy = "def late():\n    from openrlhf_ktae.trainer.lora import adapters\n"
    assert upward(ROOT / "verifier/agent.py", lazy) == ["openrlhf_ktae/verifier/agent.py:2: verifier -> trainer"]
    relative = "from ..trainer import lora\n"
    assert upward(ROOT / "backend/cpu.py", relative) == ["openrlhf_ktae/backend/cpu.py:1: backend -> trainer"]
    assert upward(ROOT / "trainer/lora.py", "import openrlhf_ktae.base.host\n") == []
