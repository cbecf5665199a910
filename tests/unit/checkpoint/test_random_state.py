"""Random states are stored in a file that loads without executing code."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()


def test_restored_generators_repeat_their_numbers(tmp_path):
    draw()
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    assert draw() != expected
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


class Devices:
    """Stand-in for torch.cuda on a node with `count` devices; this process uses device `own`, or none yet."""

    def __init__(self, count, own=None):
        self.count, self.own, self.restored = count, own, []

    def put_in_place(self, monkeypatch):
        """Patch the module's calls; reading a state would initialise CUDA."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.count > 0)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.own is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.own)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.full((4,), self.own, dtype=torch.uint8))
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("asks every device"))
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: self.restored.append(int(state[0])))
        return self


@pytest.mark.parametrize(("own", "states"), [(None, []), (0, [0]), (5, [5])])
def test_only_the_device_in_use_is_queried(monkeypatch, own, states):
    Devices(8, own).put_in_place(monkeypatch)
    assert [int(state[0]) for state in random_state()["cuda"]] == states


@pytest.mark.parametrize(
    ("saved", "count", "own", "restored"),
    [
        ([3], 8, 3, [3]),
        ([3], 1, 0, [3]),  # another node numbers its devices differently
        ([0, 1, 2, 3, 4, 5, 6, 7], 2, 1, [1]),  # an earlier release stored all eight devices' states
        ([0, 1], 8, 5, [0]),
        ([0, 1, 2, 3, 4, 5, 6, 7], 4, None, []),  # the process uses no device
        ([3], 0, None, []),
        ([], 8, 3, []),
    ],
)
def test_a_run_resumes_on_a_node_with_other_devices(monkeypatch, saved, count, own, restored):
    devices = Devices(count, own).put_in_place(monkeypatch)
    state = {**random_state(), "cuda": [torch.full((4,), number, dtype=torch.uint8) for number in saved]}
    restore_random_state(state)
    assert devices.restored == restored
