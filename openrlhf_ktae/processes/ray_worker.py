"""Ray runs this file for each worker instead of its own `setup_worker.py`: the worker becomes a fork of the server.

    python ray_worker.py --serialized-runtime-env-context=JSON --language=PYTHON default_worker.py ARGUMENTS

This process ends at once. Ray identifies a worker by its start-up token, and accepts whatever process id it registers.
"""

import json
import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]  # the folder of this file

CONTEXT, LANGUAGE = "--serialized-runtime-env-context=", "--language="


def main() -> None:
    """Fork the worker; without a server, start it as Ray does."""
    words = sys.argv[1:]
    try:
        fork([word for word in words if not word.startswith((CONTEXT, LANGUAGE))], _value(words, CONTEXT) or "{}")
    except (OSError, EOFError, KeyError):
        import ray

        setup = os.path.join(os.path.dirname(ray.__file__), "_private", "workers", "setup_worker.py")
        os.execv(sys.executable, [sys.executable, setup, *words])
    os._exit(0)


def fork(words: list[str], context: str) -> None:
    """Start a fork that runs the script `words[0]` with Ray's variables for it."""
    from openrlhf_ktae.processes.forks import FIRST_JOB, JOB_VARIABLE, ForkedProcess, run_script

    if os.environ[JOB_VARIABLE] != FIRST_JOB:
        raise KeyError(JOB_VARIABLE)
    os.environ.update(json.loads(context).get("env_vars") or {})
    ForkedProcess(target=run_script, args=(words,)).start()


def _value(words: list[str], option: str) -> str:
    return next((word.removeprefix(option) for word in words if word.startswith(option)), "")


if __name__ == "__main__":
    main()
