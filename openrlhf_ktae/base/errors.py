"""Errors that several packages raise and the command line turns into an exit code."""

from __future__ import annotations


class BadOption(ValueError):
    """An option or a combination of options that is refused; the message names it and the way out."""


class TrainingStopped(RuntimeError):
    """Training cannot go on with these data and options; the message says why and names the way out."""


class ProcessDied(RuntimeError):
    """A process that the run cannot do without is gone."""


class BadInput(ValueError):
    """A file cannot be evaluated; the message names it, the line and what to give."""
