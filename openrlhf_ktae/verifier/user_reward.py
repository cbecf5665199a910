"""A user's own `reward_func(queries, prompts, labels)`, kept from killing the run.

The host swallows its exceptions and dies three steps later of a missing reward. Here an exception, a call that takes
too long or a result of the wrong kind is an unknown verdict, and its traceback is logged once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

MODULE_NAME = "reward_func"  # as the host names it; registered, so that functions of the file can be pickled
MAX_LOGGED = 5  # different tracebacks
THREADS = 32  # calls at the same time; a call that never returns keeps its thread


@dataclass(frozen=True)
class UserReward:
    """What one call gave. `failure` is empty if it gave a finite reward."""

    reward: float
    score: float
    logs: dict[str, float]
    failure: str = ""


class RewardFile:
    """The function of a reward file, called in threads of its own."""

    def __init__(self, path: str, timeout_s: float, log_keys: Sequence[str] = ()) -> None:
        """Load the file. Raises ValueError with the file's traceback if it cannot be loaded."""
        self._function = _load(path).reward_func
        self._timeout_s = timeout_s
        self._log_keys = tuple(log_keys)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reward_func")
        self._logged: set[str] = set()
        self._ended = 0

    async def grade(self, query: str, prompt: Any, label: Any) -> UserReward:
        """Reward of one rollout: the function gets lists of length one, as from the host."""
        loop, started = asyncio.get_running_loop(), asyncio.Event()
        begin = partial(loop.call_soon_threadsafe, started.set)
        call = loop.run_in_executor(self._threads, self._call, begin, query, prompt, label)
        if not await self._starts(started):
            call.cancel()
            return self._failed(
                f"no call of reward_func has ended for {self._timeout_s} s, and {THREADS} are under way"
            )
        try:
            return self._read(await asyncio.wait_for(asyncio.shield(call), self._timeout_s))
        except TimeoutError:
            return self._failed(f"reward_func took longer than {self._timeout_s} s")
        except Exception:
            return self._failed(traceback.format_exc())

    async def _starts(self, started: asyncio.Event) -> bool:
        """Wait for a free thread, as long as other calls end; waiting is not counted as the call's own time."""
        while True:
            ended = self._ended
            try:
                return await asyncio.wait_for(started.wait(), self._timeout_s)
            except TimeoutError:
                if self._ended == ended:
                    return False

    def _call(self, begin: Callable[[], Any], query: str, prompt: Any, label: Any) -> Any:
        """In a thread: not even `exit()` gets out of it as more than an error."""
        begin()
        try:
            return self._function([query], [prompt], [label])
        except SystemExit as error:
            raise RuntimeError(f"reward_func raised {error!r}") from error
        finally:
            self._ended += 1

    def _read(self, result: Any) -> UserReward:
        if not isinstance(result, Mapping) or "rewards" not in result:
            raise TypeError(f"reward_func must return a dict with the key 'rewards', not {str(result)[:200]!r}")
        reward = as_float(result["rewards"])
        given = result.get("scores")
        score = reward if given is None else as_float(given)
        if not math.isfinite(reward) or not math.isfinite(score):
            raise ValueError(f"reward_func returned the reward {reward} and the score {score}")
        extra = result.get("extra_logs") or {}
        undeclared = sorted(set(extra) - set(self._log_keys))
        if undeclared:
            self._log_once(
                f"extra_logs of reward_func are not in the metrics: {', '.join(undeclared)}. Name them in "
                "--verifier.reward_log_keys; the host needs the same keys from every rollout."
            )
        return UserReward(reward, score, {key: as_float(extra.get(key, 0.0)) for key in self._log_keys})

    def _failed(self, failure: str) -> UserReward:
        self._log_once(f"reward_func failed; the verdict is unknown. Logged once:\n{failure}")
        return UserReward(0.0, 0.0, dict.fromkeys(self._log_keys, 0.0), failure)

    def _log_once(self, message: str) -> None:
        if message not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(message)
            logger.error(message)


def as_float(value: Any) -> float:
    """A number, a list of one, or a tensor of one element as a float."""
    if hasattr(value, "flatten") and hasattr(value, "item"):
        value = value.flatten()[0].item()
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return float(value)


def _load(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ValueError(f"verifier option reward_file = {path!r}: no such file")
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"verifier option reward_file = {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"verifier option reward_file = {path!r} cannot be loaded:\n{traceback.format_exc()}"
        ) from error
    if not callable(getattr(module, "reward_func", None)):
        raise ValueError(f"verifier option reward_file = {path!r} defines no reward_func(queries, prompts, labels)")
    return module
