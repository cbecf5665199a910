"""Planned against measured memory of an update, for one small model; benchmarks/memory_peaks.py measures all."""

from __future__ import annotations

import importlib.util

import pytest
from marks import SLOW

pytestmark = SLOW

WITHIN = 0.15


@pytest.fixture(scope="module")
def peaks(root):
    spec = importlib.util.spec_from_file_location("memory_peaks", root / "benchmarks/memory_peaks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_planned_memory_is_that_of_the_update(peaks, root, tmp_path, monkeypatch):
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.memory import phases as memory
    from openrlhf_ktae.memory.model_shape import model_shape

    monkeypatch.setenv("PYTHONPATH", str(root))
    peaks.make_model("8M", tmp_path / "8M")
    measured = peaks.measure(tmp_path / "8M", 1, 1, tmp_path / "run")
    args = parse_command_line(peaks.options("8M", 1, 1))
    planned = memory.training(args, model_shape(str(tmp_path / "8M")), cuda=False).total
    assert planned == pytest.approx(measured, rel=WITHIN)
