"""If one of two ranks has a non-finite gradient, both skip the update."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import RARELY, SLOW

from openrlhf_ktae.base.free_port import free_port

SCRIPT = Path(__file__).with_name("rank_updates.py")
SECONDS = 120


def both_ranks(tmp_path, *words):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *words, str(tmp_path / f"{rank}.pt")],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]


CASES = [(3, "float32", "nan"), pytest.param(2, "bfloat16", "inf", marks=RARELY)]


@SLOW
@pytest.mark.parametrize(("stage", "dtype", "bad"), CASES)
def test_ranks_agree_to_skip_an_update(stage, dtype, bad, tmp_path):
    one, other = both_ranks(tmp_path, str(stage), dtype, bad)
    assert one["skipped"] == other["skipped"] == [0, 1, 1]
    for mine, theirs in zip(one["weights"], other["weights"], strict=True):
        assert torch.equal(mine, theirs)
    before, skipped, after = one["weights"]
    assert torch.equal(before, skipped)
    assert after.isfinite().all()
    assert not torch.equal(after, before), "the next update must happen"
