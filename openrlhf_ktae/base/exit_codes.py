"""Exit codes of all commands; docs/reliability.md lists the causes of each."""

EXIT_FAILED = 1
"""A Python error, or a comparison or check that found a difference."""
EXIT_BAD_INPUT = 2
"""Options, files or data were refused, or a file cannot be read or written."""
EXIT_STOPPED = 3
"""Training or an evaluation stopped early and printed the reason."""
EXIT_FAULT = 4
"""A process died; `--run.restarts` resumes from the last checkpoint."""
EXIT_INTERRUPTED = 130
"""SIGINT or SIGTERM."""
