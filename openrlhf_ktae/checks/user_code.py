"""The user's reward files, agents and reward servers: can the engines use them?"""

import ast
import builtins
import importlib.util
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from openrlhf_ktae.base.secrets import redacted
from openrlhf_ktae.data.names import entries
from openrlhf_ktae.data.prompt_files import TEXT_SUFFIXES, UnreadableDataset, text_rows

SERVER_SECONDS = 3  # to connect, and for a response
SAMPLE = {"query": [""], "prompts": [""], "labels": [""]}
NO_SUCH_PLACE = (401, 403, 404, 405)  # HTTP status codes that do not change by waiting
REWARD_FILE_SECONDS = 8  # a slower import would also stall every engine
AGENT = "AgentExecutor"
LOADED, CALLED = "the reward function is there", "the reward function returned "
# Runs in its own process, as in an engine; its last line proves that the file did not exit early.
PROBE = f"""
import json, sys
from openrlhf_ktae.verifier.user_reward import Call, called, kind_of, read_result, reward_function
path, row, prompt, label = json.loads(sys.argv[1])
function = reward_function(path)
if kind_of(function) == "openrlhf":
    import inspect
    try:
        inspect.signature(function).bind([], [], [])
    except TypeError as error:
        sys.exit(f"it does not take queries, prompts, labels: {{error}}")
    except ValueError:
        pass
print("\\n{LOADED}", flush=True)
if prompt is not None:
    response = f"\\\\boxed{{{{{{label}}}}}}"
    result = called(function, Call(prompt + response, prompt, response, label, row))
    print("\\n{CALLED}" + json.dumps(sorted(read_result(result, kind_of(function))[2])), flush=True)
"""


@dataclass(frozen=True)
class Tried:
    """The outcome of trying a user's file in its own process: its problem, and the names that it needs or returns."""

    problem: str = ""
    names: tuple[str, ...] = ()


def judge_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the problems of a reward file, an agent file or the addresses of reward servers."""
    path, agent = args.verifier.config.reward_file, args.train.agent_func_path
    if path and not Path(path).is_file():
        yield f"--reward.remote_url {path}: no such file"
    elif path:
        if problem := _tried(path, _first_row(args)).problem:
            yield f"--reward.remote_url {path}: {problem}"
    elif not args.verifier.enable and agent:
        yield from _agent_file(agent)
    elif not args.verifier.enable:
        yield from _addresses(args.reward.remote_url or [])


def _addresses(urls: list[str]) -> Iterator[str]:
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            yield f"--reward.remote_url {url}: give a Python file (.py), or addresses that begin with http:// or https://"
        elif reason := _unanswered(url):
            yield (
                f"--reward.remote_url {redacted(url, ())}: {reason}; start the reward server first, or correct "
                "the address"
            )


def _unanswered(url: str) -> str:
    """Return why a server at an address will not answer queries; empty if it may, even if it is slow or fails now."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((str(parts.hostname), port), SERVER_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"nothing answers there ({error})"
    headers = {"Content-Type": "application/json"}
    query = urllib.request.Request(url, json.dumps(SAMPLE).encode(), headers, method="POST")
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(query, timeout=SERVER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"answers a query with {error.code} {error.reason}" if error.code in NO_SUCH_PLACE else ""
    except (OSError, ValueError, HTTPException):  # slow or dropping connections: may be temporary
        return ""
    return ""


def log_keys(args: SimpleNamespace) -> tuple[str, ...]:
    """Return the `extra_logs` keys that the user named, or else the keys that the function's first call returned."""
    config = args.verifier.config
    if config.reward_log_keys or not config.reward_file:
        return tuple(config.reward_log_keys)
    return _tried(config.reward_file, _first_row(args)).names


def _first_row(args: SimpleNamespace) -> str:
    """Return [row, prompt, label] of the first prompt as JSON; [{}, null, null] unless it is in a local text file."""
    name = Path(entries(args.data.prompt_dataset or "")[0][0])
    try:
        row = next(text_rows(name)) if name.suffix in TEXT_SUFFIXES and name.is_file() else {}
        prompt, label = row.get(args.data.input_key), row.get(args.data.label_key)
    except (UnreadableDataset, StopIteration):
        row, prompt, label = {}, None, None
    return json.dumps([row, prompt if isinstance(prompt, str) else None, label])


@cache
def _tried(path: str, first: str) -> Tried:
    """Load a reward file and call its function once, in a separate process."""
    command = [sys.executable, "-c", PROBE, json.dumps([path, *json.loads(first)])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=REWARD_FILE_SECONDS)
    except subprocess.TimeoutExpired as late:
        if LOADED in str(late.stdout or ""):
            return Tried()  # the function is slow, not the import
        return Tried(f"does not import within {REWARD_FILE_SECONDS} s; move slow work into the function")
    lines = done.stdout.rstrip().splitlines() or [""]
    if lines[-1].startswith(CALLED):
        return Tried(names=tuple(json.loads(lines[-1].removeprefix(CALLED))))
    if done.returncode == 0 and lines[-1] == LOADED:
        return Tried()
    said = done.stderr.strip().splitlines() or [f"it ends the process with exit code {done.returncode}"]
    if LOADED not in lines:
        return Tried(f"does not import ({said[-1]}); it must define reward_func(queries, prompts, labels)")
    if not _is_defect(said[-1]):
        return Tried()  # for example a server that is not up yet; at run time this is an unknown verdict
    return Tried(f"the function fails on the first prompt ({said[-1]}); fix it")


def _is_defect(line: str) -> bool:
    """Return whether a traceback's last line names a built-in exception other than `OSError` (machine, network)."""
    kind = getattr(builtins, line.partition(":")[0].strip(), None)
    return isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, OSError)


def _agent_file(path: str) -> Iterator[str]:
    """Check the class and imported modules without importing the file, which needs the host and many seconds."""
    flag = f"--train.agent_func_path {path}"
    if not (path.endswith(".py") and Path(path).is_file()):
        yield f"{flag}: no such Python file"
        return
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        yield f"{flag}: is not Python ({error}); fix it"
        return
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
            yield from (f"{flag}: does not import (no module named {name}); install it" for name in _absent(node))
        elif not isinstance(node, (ast.Expr, ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign)):
            names.add("*")  # a condition or similar, which can define anything
    if not names & {AGENT, "*"}:
        yield f"{flag}: defines no class {AGENT}; add one (its base class is in openrlhf.utils.agent)"


def _absent(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the top-level modules of an import that are not installed."""
    if isinstance(node, ast.ImportFrom):
        found = [] if node.level or not node.module else [node.module]
    else:
        found = [alias.name for alias in node.names]
    tops = [name.split(".")[0] for name in found]
    return [top for top in tops if top not in sys.modules and importlib.util.find_spec(top) is None]
