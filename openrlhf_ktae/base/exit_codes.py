"""Exit codes of all commands; docs/reliability.md lists what leads to each."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
"""An error of Python, or a command that compares or checks and found a difference."""
EXIT_BAD_INPUT = 2
"""Options, files or data are refused; nothing was started."""
EXIT_STOPPED = 3
"""Training or an evaluation ended early, and said why."""
EXIT_FAULT = 4
"""A process died; `--run.restarts` goes on from the last checkpoint."""
EXIT_INTERRUPTED = 130
"""SIGINT or SIGTERM."""
