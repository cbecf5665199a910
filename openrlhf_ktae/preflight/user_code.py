"""Files and addresses of the user that judge answers: can the engines use them?"""

from __future__ import annotations

import ast
import importlib.util
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from openrlhf_ktae.safety.secrets import redacted

SERVER_SECONDS = 3  # to connect, and for an answer
SAMPLE = {"query": [""], "prompts": [""], "labels": [""]}
NO_SUCH_PLACE = (401, 403, 404, 405)  # what no waiting changes
REWARD_FILE_SECONDS = 8  # a file that takes longer to import would also stall every engine
USABLE = "reward_func can be called"
AGENT = "AgentExecutor"
# Runs in a process of its own, as in an engine; what it says at its end cannot be said by a file that exits.
PROBE = f"""
import importlib.util, inspect, sys
spec = importlib.util.spec_from_file_location("reward_func", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["reward_func"] = module
spec.loader.exec_module(module)
function = getattr(module, "reward_func", None)
if not callable(function):
    sys.exit("it has no function reward_func")
try:
    inspect.signature(function).bind([], [], [])
except TypeError as error:
    sys.exit(f"reward_func does not take queries, prompts, labels: {{error}}")
except ValueError:
    pass
print("\\n{USABLE}")
"""


def judge_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is wrong with a reward file, an agent file or the addresses of reward servers."""
    path, agent = args.verifier.config["reward_file"], args.train.agent_func_path
    if path:
        yield from _reward_file(path)
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
    """Return why nobody answers queries at an address; empty where a server does, whatever it answers."""
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
    except (OSError, ValueError, HTTPException):  # slow, or it breaks off: a server may do so for a while
        return ""
    return ""


def _reward_file(path: str) -> Iterator[str]:
    flag = f"--reward.remote_url {path}"
    if not Path(path).is_file():
        yield f"{flag}: no such file"
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, path], capture_output=True, text=True, timeout=REWARD_FILE_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield f"{flag}: does not import within {REWARD_FILE_SECONDS} s; move slow work into reward_func"
        return
    if done.returncode or not done.stdout.rstrip().endswith(USABLE):
        said = done.stderr.strip().splitlines() or [f"it ends the process with exit code {done.returncode}"]
        yield f"{flag}: does not import ({said[-1]}); it must define reward_func(queries, prompts, labels)"


def _agent_file(path: str) -> Iterator[str]:
    """Look for the class, and for the modules that the file imports. To import it takes the host, and many seconds."""
    flag = f"--train.agent_func_path {path}"
    if not (path.endswith(".py") and Path(path).is_file()):
        yield f"{flag}: no such Python file"
        return
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        yield f"{flag}: is not Python ({error}); repair it"
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
            names.add("*")  # a condition or the like, in which anything can be defined
    if not names & {AGENT, "*"}:
        yield f"{flag}: defines no class {AGENT}; add one (openrlhf.utils.agent has what it inherits from)"


def _absent(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the top-level modules of an import that are not installed."""
    if isinstance(node, ast.ImportFrom):
        found = [] if node.level or not node.module else [node.module]
    else:
        found = [alias.name for alias in node.names]
    tops = [name.split(".")[0] for name in found]
    return [top for top in tops if top not in sys.modules and importlib.util.find_spec(top) is None]
