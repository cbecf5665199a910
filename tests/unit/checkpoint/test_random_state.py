"""Random states go through a file that is read without executing code."""

from __future__ import annotations

import random

import numpy as np
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
