"""Errors that several packages raise and the command line turns into an exit code."""


class Refusal(ValueError):
    """A request is refused. The message gives the reason and the way out; commands print it and exit with 2."""


class BadOption(Refusal):
    """An option or combination of options is refused; the message names it and the way out."""


class TrainingStopped(RuntimeError):
    """Training cannot continue with these data and options; the message gives the reason and the way out."""


class ProcessDied(RuntimeError):
    """A process that the run needs died."""


class BadInput(Refusal):
    """An input, such as a file or a benchmark, cannot be used; the message names it and says what to give."""
