"""What all commands share: messages for refused input, and exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED


class CommandParser(argparse.ArgumentParser):
    """A parser of one command: no abbreviations; a refusal is one line."""

    def __init__(self, module: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"python -m openrlhf_ktae.cli.{module}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse with the message alone."""
        raise BadOption(f"{message.removeprefix('argument ')}; --help lists all options")


def run_command(
    run: Callable[[Sequence[str]], None],
    argv: Sequence[str] | None,
    refusals: tuple[type[Exception], ...] = (),
    then: str = "what was written is whole; the same command goes on from there",
) -> int:
    """Run a command; return 0, 2 with one message for refused input or a file that cannot be had, 130 after Ctrl-C.

    A scheduler's SIGTERM is Ctrl-C, so that runs that the command has started end with it; `then` is said after it.
    """
    refused: tuple[type[Exception], ...] = (BadOption, *refusals)
    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        run(sys.argv[1:] if argv is None else argv)
    except refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:  # no such folder, no permission, no space: the system's own words say which
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
    """Return the tokenizer of `name`, given with the option `flag`.

    Raises:
        BadOption: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)  # left open, it asks
    except Exception as error:  # each layer has its own; all mean that there is no such tokenizer
        raise BadOption(f"{flag} {name}: no tokenizer there ({' '.join(str(error).split())[:120]})") from None
