"""A user's own reward function, run so that its errors do not end the run.

Three kinds work unchanged, recognised by the names of their parameters:

    reward_func(queries, prompts, labels)                    OpenRLHF: a dict with `rewards`, `scores`, `extra_logs`
    f(prompts, completions, **columns)                       TRL: a list of numbers
    compute_score(data_source, solution_str, ground_truth)   verl: a number, or a dict with `score`

Each call gets one rollout. The host swallows exceptions and crashes three steps later on a missing reward. Here an
exception, a call over its time limit or a result of the wrong kind gives an unknown verdict. Its message or traceback
is recorded once.
"""

import asyncio
import importlib.util
import inspect
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
from typing import Any, NamedTuple

from openrlhf_ktae.base.user_files import with_its_folder

logger = logging.getLogger(__name__)

MODULE_NAME = "reward_func"  # the host's name; in sys.modules, so that functions of the file can be pickled
HINT = "hint"  # key of an engine's answer: a message to the author of the reward function
MAX_HINTS = 5  # different messages, tracebacks among them
PARAMETERS = {"completions": "trl", "solution_str": "verl"}  # parameter name -> kind of function that has it
THREADS = 32  # concurrent calls; a call that never returns keeps its thread


class LabelledRow(NamedTuple):
    """A label for the reward function, with all columns of its row."""

    label: Any
    row: Mapping[str, Any]


def label_and_row(label: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return a label and the columns of its row, if it carries any."""
    return (label.label, label.row) if isinstance(label, LabelledRow) else (label, {})


@dataclass(frozen=True)
class UserReward:
    """Result of one call. `failure` is empty if the reward is finite; `hint` is a message to the author, given once."""

    reward: float
    score: float
    logs: dict[str, float]
    failure: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Call:
    """One rollout as a reward function gets it."""

    query: str
    prompt: Any
    response: str
    label: Any
    row: Mapping[str, Any]


class RewardFile:
    """The function of a reward file, called in separate threads."""

    def __init__(self, path: str, timeout_s: float, log_keys: Sequence[str] = ()) -> None:
        """Load the file. Raises ValueError with the file's traceback if it cannot be loaded."""
        self._function = reward_function(path)
        self._timeout_s = timeout_s
        self._log_keys = tuple(log_keys)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reward_func")
        self._given: set[str] = set()
        self._ended = 0

    async def grade(self, query: str, prompt: Any, label: Any, response: str = "") -> UserReward:
        """Return the reward of one rollout; `label` may be a `LabelledRow`."""
        loop, started = asyncio.get_running_loop(), asyncio.Event()
        begin = partial(loop.call_soon_threadsafe, started.set)
        call = loop.run_in_executor(
            self._threads, self._call, begin, Call(query, prompt, response, *label_and_row(label))
        )
        if not await self._starts(started):
            call.cancel()
            return self._failed(
                f"no call of the reward function has ended for {self._timeout_s} s, and {THREADS} are still running"
            )
        try:
            return self._read(await asyncio.wait_for(asyncio.shield(call), self._timeout_s))
        except TimeoutError:
            return self._failed(f"the reward function took longer than {self._timeout_s} s")
        except Exception:
            return self._failed(traceback.format_exc())

    async def _starts(self, started: asyncio.Event) -> bool:
        """Wait for a free thread while other calls end. This time does not count towards the call's limit."""
        while True:
            ended = self._ended
            try:
                return await asyncio.wait_for(started.wait(), self._timeout_s)
            except TimeoutError:
                if self._ended == ended:
                    return False

    def _call(self, begin: Callable[[], Any], one: Call) -> Any:
        """Call the function in a thread; even `exit()` becomes an error."""
        begin()
        try:
            return called(self._function, one)
        except SystemExit as error:
            raise RuntimeError(f"the reward function raised {error!r}") from error
        finally:
            self._ended += 1

    def _read(self, result: Any) -> UserReward:
        reward, score, extra = read_result(result, kind_of(self._function))
        undeclared = sorted(set(extra) - set(self._log_keys))
        hints = []
        if undeclared:
            hints.append(
                f"extra_logs of the reward function are not in the metrics: {', '.join(undeclared)}. Name them in "
                "--verifier.reward_log_keys; the host needs the same keys from every rollout."
            )
        logs = {}
        for key in self._log_keys:
            found = finite_number(extra.get(key, 0.0))
            logs[key] = found or 0.0
            if found is None:
                hints.append(f"extra_logs[{key!r}] of the reward function is {extra[key]!r}; it counts as 0")
        return UserReward(reward, score, logs, hint=self._once("\n".join(hints)))

    def _failed(self, failure: str) -> UserReward:
        hint = self._once(f"the reward function failed; the verdict is unknown. Reported once:\n{failure}")
        return UserReward(0.0, 0.0, dict.fromkeys(self._log_keys, 0.0), failure, hint)

    def _once(self, hint: str) -> str:
        """Log and return a new message; return an empty one for a repeated message, or after `MAX_HINTS`."""
        if not hint or hint in self._given or len(self._given) >= MAX_HINTS:
            return ""
        self._given.add(hint)
        logger.error(hint)
        return hint


def kind_of(function: Callable[..., Any]) -> str:
    """Return the kind of a reward function, `trl`, `verl` or `openrlhf`, by the names of its parameters."""
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return "openrlhf"
    return next((kind for name, kind in PARAMETERS.items() if name in names), "openrlhf")


def called(function: Callable[..., Any], one: Call) -> Any:
    """Call a reward function of any kind on one rollout."""
    kind = kind_of(function)
    if kind == "trl":
        columns = {name: [value] for name, value in one.row.items() if name not in ("prompts", "completions")}
        result = function(**_taken(function, {**columns, "prompts": [one.prompt], "completions": [one.response]}))
    elif kind == "verl":
        row = one.row
        known = {
            "data_source": row.get("data_source", row.get("datasource", "default")),
            "solution_str": one.response,
            "ground_truth": one.label,
            "extra_info": row.get("extra_info") or {},
        }
        result = function(**_taken(function, known))
    else:
        result = function([one.query], [one.prompt], [one.label])
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _taken(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for which a function has parameters; all of them if it takes `**kwargs`."""
    parameters = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def read_result(result: Any, kind: str) -> tuple[float, float, Mapping[str, Any]]:
    """Return reward, score and `extra_logs` of one rollout from the result of a reward function or server.

    Raises:
        TypeError: the result does not have the form of its kind.
        ValueError: reward or score is not one finite number.
    """
    extra: Mapping[str, Any] = {}
    if kind == "openrlhf":
        if not isinstance(result, Mapping) or "rewards" not in result:
            raise TypeError(f"must return a dict with the key 'rewards', not {str(result)[:200]!r}")
        reward, given = result["rewards"], result.get("scores")
        extra = logs if isinstance(logs := result.get("extra_logs"), Mapping) else {}
    elif kind == "verl" and isinstance(result, Mapping):
        if "score" not in result:
            raise TypeError(f"compute_score must return a number or a dict with 'score', not {str(result)[:200]!r}")
        reward, given = result["score"], None
        extra = {name: value for name, value in result.items() if name != "score" and finite_number(value) is not None}
    else:
        reward, given = result, None
    found = _needed("reward", reward)
    return found, found if given is None else _needed("score", given), extra


def _needed(name: str, given: Any) -> float:
    found = finite_number(given)
    if found is None:
        raise ValueError(f"returned the {name} {str(given)[:200]}; it must be one finite number")
    return found


def finite_number(value: Any) -> float | None:
    """Return a finite number, or a list, array or tensor of one, as a float; None for anything else."""
    while True:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, (list, tuple)):
            break
        if len(value) != 1:
            return None
        (value,) = value
    if isinstance(value, (str, bytes)):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def reward_function(path: str) -> Callable[..., Any]:
    """Return a file's `reward_func` or `compute_score`, or its only function of TRL's or verl's kind.

    Raises ValueError if the file cannot be loaded (the message has the traceback), or does not have one such function.
    """
    names = vars(_load(path))
    for name in (MODULE_NAME, "compute_score"):
        if callable(function := names.get(name)):
            return function
    own = [one for one in names.values() if inspect.isfunction(one) and one.__module__ == MODULE_NAME]
    found = [one for one in own if kind_of(one) != "openrlhf"]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"verifier option reward_file = {path!r} defines no reward_func(queries, prompts, labels), "
        "compute_score(data_source, solution_str, ground_truth), or one f(prompts, completions, **columns); add one"
    )


def _load(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ValueError(f"verifier option reward_file = {path!r}: no such file")
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"verifier option reward_file = {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    try:
        with with_its_folder(path):
            spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"verifier option reward_file = {path!r} cannot be loaded:\n{traceback.format_exc()}"
        ) from error
    return module
