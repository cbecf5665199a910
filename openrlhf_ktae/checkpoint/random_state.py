"""The random states of one process, as plain containers and tensors: loading them executes no code."""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of Python's, numpy's and torch's generators, and of this process's CUDA device.

    A process that has not used CUDA saves no CUDA state. Reading it would initialise CUDA on every device of the node,
    and a node with fewer devices could not resume.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned, here or on another node.

    Earlier releases saved a state for each visible device. Of these, this process uses the state of its own device
    number, or the first if there is none.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    states = state["cuda"]
    if states and torch.cuda.is_initialized():
        own = torch.cuda.current_device()
        torch.cuda.set_rng_state(states[own if own < len(states) else 0])
