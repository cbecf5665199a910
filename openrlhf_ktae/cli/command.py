"""Shared by the commands: the option parser, messages for refused input, exit codes and loading a tokenizer."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from openrlhf_ktae.base.errors import BadOption, Refusal
from openrlhf_ktae.base.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from openrlhf_ktae.base.text import short


class CommandParser(argparse.ArgumentParser):
    """The parser of one command: no abbreviated options, errors on one line."""

    def __init__(self, module: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"python -m openrlhf_ktae.cli.{module}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise BadOption with the message, without the usage text."""
        raise BadOption(f"{message.removeprefix('argument ')}; --help lists all options")


def at_least_1(text: str) -> int:
    """Parse a whole number of at least 1. Raises argparse.ArgumentTypeError for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def run_command(
    run: Callable[[Sequence[str]], None],
    argv: Sequence[str] | None,
    then: str = "output files are complete; run the same command again to resume",
) -> int:
    """Run a command; return 0, 2 for refused input or a file error (with one message), 130 after Ctrl-C.

    SIGTERM from a scheduler counts as Ctrl-C, so the command's runs end with it. The message ends with `then`.
    """
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        run(sys.argv[1:] if argv is None else argv)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:  # such as a missing folder or permission, or a full disk; the system's message says which
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"interrupted: {then}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
    return 0


def load_tokenizer(name: str, flag: str) -> Any:
    """Return the tokenizer of `name`, the value of the option `flag`.

    Raises BadOption if no tokenizer can be loaded from it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # if unset, transformers asks the user
    except Exception as error:  # each layer raises its own types; all mean that no tokenizer can be loaded
        raise BadOption(f"{flag} {name}: no tokenizer found there ({short(error)})") from None
