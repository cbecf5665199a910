"""Hostile responses get a verdict within time and memory, run no code, and do not affect the next check."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hostile_cases import ALGEBRA, ARITHMETIC, HOSTILE, INJECTION, TEXT

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, Verifier

TIMEOUT_S = 2.0
MEMORY_MB = 768
SOURCES = sorted((Path(__file__).parents[3] / "openrlhf_ktae" / "verifier").rglob("*.py"))


@pytest.fixture(scope="module")
def strict():
    with Verifier(workers=1, timeout_s=TIMEOUT_S, cpu_s=1.0, memory_mb=MEMORY_MB, cache_size=0) as verifier:
        yield verifier


def peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_there_are_enough_cases():
    assert len(HOSTILE) == len(ARITHMETIC) + len(ALGEBRA) + len(TEXT) + len(INJECTION) >= 200


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_response(strict, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gold, response = HOSTILE[name]
    begun = time.monotonic()
    verdict = strict.verify(gold, response)
    assert time.monotonic() - begun < TIMEOUT_S + 1
    assert verdict.status != CORRECT
    assert verdict.reason != "internal error", verdict.detail
    assert all(peak_mb(worker.process.pid) < MEMORY_MB for worker in strict.pool._workers)
    after = strict.verify(r"\frac{1}{2}", r"\boxed{\frac{2}{4}}")
    assert (after.status, after.reason) == (CORRECT, "same value")
    assert not list(tmp_path.iterdir())


def test_almost_no_verdict_is_unknown(strict):
    verdicts = {name: strict.verify(gold, response) for name, (gold, response) in HOSTILE.items()}
    assert [name for name, verdict in verdicts.items() if verdict.status == UNKNOWN] == []


def test_no_source_evaluates_text_as_python():
    """No eval, exec, compile, sympify or computed attribute access, so response text cannot run as Python."""
    forbidden = {"eval", "exec", "compile", "sympify", "parse_expr", "lambdify", "literal_eval", "setattr"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            attribute = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            regex = attribute == "compile" and ast.unparse(node.func) == "re.compile"
            computed = name == "getattr" and not isinstance(node.args[1], ast.Constant) and path.name != "config.py"
            if name in forbidden or (attribute in forbidden and not regex) or computed:
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert found == []
