"""A run's position in its data: the host's loader, and rollouts generated but not yet trained on."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from openrlhf_ktae.trainer.ppo_utils.columns import Together, even_columns, flat, of_one_kind, rows_of, unpacked
from openrlhf_ktae.trainer.ppo_utils.received import fields_of

POSITION = "position"
BUFFERS = ("buffer", "carried")


class PositionedGenerator(SamplesGenerator):
    """The host's generator with a position; each subclass adds its own state."""

    KEPT = ""
    """Names of attributes that belong to the position; each class lists only its own."""
    prompts_dataloader: Any
    _sample_buffer: Any = None
    _dataloader_iter: Any = None

    def position(self) -> dict[str, Any]:
        """Return this generator's state for a checkpoint; rollouts in it are not copied."""
        buffer, drained = list(self._sample_buffer or []), self._dataloader_iter is None
        kept = {key: copy.copy(getattr(self, name)) for key, name in self._kept().items()}
        return {"ended": drained and not buffer, "drained": drained, "buffer": buffer, **kept}

    def load_position(self, position: Mapping[str, Any]) -> None:
        """Restore `position`, as far as an older checkpoint has it; the loader of prompts already has its state."""
        self._sample_buffer = rollouts(position["buffer"])
        # The host starts a new episode if both are empty; an episode in progress must continue.
        self._dataloader_iter = None if position["drained"] else iter(self.prompts_dataloader)
        for key, name in self._kept().items():
            if key in position:
                setattr(self, name, rollouts(position[key]) if key in BUFFERS else copy.copy(position[key]))

    def _kept(self) -> dict[str, str]:
        """Return key in the position -> attribute, for all classes of this generator."""
        return {name.lstrip("_"): name for kind in type(self).__mro__ for name in vars(kind).get("KEPT", "").split()}


class PositionedLoader:
    """The host's loader of prompts; its state includes the state of the generator that draws from it.

    Both host trainers save and load the loader's state with every checkpoint, but not the generator's.
    """

    def __init__(self, loader: Any, generator: Any) -> None:
        self._loader, self._generator = loader, generator

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return both states. Rollouts are shared with the generator until `plain_position` copies them."""
        return {"loader": self._loader.state_dict(), POSITION: self._generator.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`, or a plain state of the host's loader."""
        if POSITION not in state:
            self._loader.load_state_dict(state)
            return
        self._loader.load_state_dict(state["loader"])
        self._generator.load_position(state[POSITION])


def plain_position(position: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a generator's position as plain containers and tensors; for None, the position at a run's start."""
    if position is None:
        return {"ended": False}
    return {name: by_columns(value) if name in BUFFERS else value for name, value in position.items()}


def by_columns(kept: list[Any] | dict[str, Any]) -> Any:
    """Return rollouts field by field, since saving a tensor takes 40 us; a dict just loaded is returned unchanged.

    A list just loaded from an older checkpoint has a dict for each rollout.
    """
    if isinstance(kept, dict):
        return kept
    return even_columns([one if isinstance(one, dict) else fields_of(one) for one in kept], stored)


def stored(values: list[Any]) -> Any:
    """Return the values of a field; tensors as one flat tensor and their shapes."""
    if all(isinstance(value, dict) for value in values):
        return even_columns(values, stored)
    return (flat(values), [tuple(value.shape) for value in values]) if of_one_kind(values) else values


def restored(column: Any) -> list[Any]:
    """Invert `stored`."""
    if isinstance(column, dict):
        return rows_of(column, restored)
    return unpacked(Together(*column)) if isinstance(column, tuple) else column


def rollouts(kept: list[Any] | dict[str, Any]) -> list[Experience]:
    """Rebuild rollouts from columns, or from one dict each as in older checkpoints; keep those already built."""
    return [one if isinstance(one, Experience) else Experience(**one) for one in rows_of(kept, restored)]
