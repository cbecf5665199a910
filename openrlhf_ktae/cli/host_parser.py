"""The host's own command line, run unchanged, with this package's options in front.

OpenRLHF builds its parser and validates arguments under `if __name__ == "__main__"`. That block of the installed file
is executed here with two names replaced: `argparse.ArgumentParser` by a subclass that also declares our options, and
`train` by a function that keeps the validated arguments. No host module that needs a GPU is imported.
"""

import argparse
import ast
import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.host import HOST_CLI, package_folder
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.base.text import nearest
from openrlhf_ktae.cli.command import CommandParser

HIERARCHIZE = "openrlhf.utils.config"


class Parser(CommandParser):
    """The host's parser, with the host's options in a separate group below ours.

    `declare` adds our options. `amend` may change a host option as it is declared. `defaults` returns arguments that
    are parsed before the user's. `finish` gets the parsed namespace before the host validates it.
    """

    def __init__(
        self,
        declare: Callable[[argparse.ArgumentParser], None],
        amend: Callable[[Sequence[str], dict[str, Any]], None],
        finish: Callable[[argparse.Namespace], None],
        defaults: Callable[[Mapping[str, argparse.Action]], list[str]],
        epilog: str,
    ) -> None:
        about = "Train with KTAE token-level advantages through OpenRLHF's Ray PPO trainer."
        super().__init__("train_ppo_ray", about, epilog)
        self.usage = "%(prog)s --advantage_estimator ktae [options]"
        self._amend, self._finish, self._first_words = amend, finish, defaults
        self._host_group: Any = None
        declare(self)
        self._host_group = self.add_argument_group("OpenRLHF 0.11.2")

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Declare an option; the host's options, which are declared last, go to their own group."""
        if getattr(self, "_host_group", None) is None:
            return super().add_argument(*names, **settings)
        self._amend(names, settings)
        return self._host_group.add_argument(*names, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, refuse undeclared options, and translate ours for the host."""
        words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = self.parse_known_args([*self._first_words(self._option_string_actions), *words], namespace)
        for word in unknown:
            flag = word.split("=")[0]
            raise BadOption(f"{flag}: no such option{nearest(flag, list(self._option_string_actions))}")
        self._finish(parsed)
        return parsed


def parse(parser: Parser, argv: Sequence[str]) -> SimpleNamespace:
    """Parse and validate `argv` with the host's own code; return its nested arguments.

    Raises BadOption if the parser or the host's validation rejects the arguments.
    """
    kept: list[SimpleNamespace] = []
    names = {
        "__name__": HOST_CLI,
        "argparse": SimpleNamespace(ArgumentParser=lambda: parser),
        "datetime": datetime,
        "train": kept.append,
    }
    talk = io.StringIO()
    try:
        with temporarily(sys, argv=[parser.prog, *argv]), contextlib.redirect_stdout(talk):
            exec(_main_block(), names)
    except AssertionError as refusal:
        raise BadOption(str(refusal)) from None
    finally:
        sys.stdout.write(talk.getvalue())
    return kept[0]


def _provide_hierarchize(host: Path) -> None:
    """Load the one module that the block imports, without its package, whose import of transformers takes seconds."""
    spec = importlib.util.spec_from_file_location(HIERARCHIZE, host / "utils" / "config.py")
    if HIERARCHIZE not in sys.modules and spec is not None and spec.loader is not None:
        sys.modules[HIERARCHIZE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[HIERARCHIZE])


@cache
def _main_block() -> CodeType:
    """Compile the body of `if __name__ == "__main__"` of the installed host command."""
    host = package_folder("openrlhf")
    if host is None:
        raise BadOption("openrlhf is not installed; run `make setup`, or `make setup-gpu` on a GPU machine")
    _provide_hierarchize(host)
    path = host / "cli" / "train_ppo_ray.py"
    tree = ast.parse(path.read_text(), str(path))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)]
    if len(blocks) != 1:
        raise BadOption(f"{path} has {len(blocks)} main blocks instead of one: another OpenRLHF release?")
    return compile(ast.Module(blocks[0].body, type_ignores=[]), str(path), "exec")
