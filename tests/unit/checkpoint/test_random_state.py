"""Random states go through a file that is read without executing code."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from openrlhf_ktae.checkpoint.random_state import random_state, restore_random_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(3).tolist(), np.random.randn(), torch.rand(3).tolist()


def test_the_same_numbers_come_again(tmp_path):
    draw()
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    assert draw() != expected
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


@pytest.fixture
def gpus(monkeypatch):
    """A process with so many GPUs in view that works on one of them, or on none: what it does to them is returned."""

    def see(count, current=None):
        done = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: current is not None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([current]))
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: done.append(state.tolist()))
        return done

    return see


def test_the_trainer_leaves_gpus_alone_that_it_only_sees(gpus):
    done = gpus(8)
    state = random_state()
    assert state["cuda"] == []
    restore_random_state(state)
    assert done == []


def test_a_rank_goes_on_with_its_own_gpu_on_another_node(gpus):
    gpus(8, current=5)
    state = random_state()
    assert [one.tolist() for one in state["cuda"]] == [[5]]
    done = gpus(1, current=0)
    restore_random_state(state)
    assert done == [[5]]


def test_a_checkpoint_with_a_state_for_each_gpu_of_a_larger_node_is_read(gpus):
    state = {**random_state(), "cuda": [torch.tensor([gpu]) for gpu in range(8)]}
    for count, current in ((4, None), (4, 3), (16, 9), (0, None)):
        done = gpus(count, current)
        restore_random_state(state)
        assert done == ([] if current is None else [[current % 8]])
