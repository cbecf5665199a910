"""`python -m openrlhf_ktae.cli.rescore RUN_DIR`: variants and ablations of K on recorded rollouts."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.cli.command import CommandParser, run_command
from openrlhf_ktae.evaluation.results import require_folder, write_both

EXAMPLES = """
examples:
  runs/quickstart --ablations
  runs/quickstart/rollouts/step-000010.parquet --arm "strict:variant=calibrated,p_max=0.05"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(run, argv)


def run(argv: Sequence[str]) -> None:
    """Rescore, print the table and write it to `--output` if given."""
    parser = CommandParser("rescore", __doc__ or "", EXAMPLES)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run directories, folders or parquet files")
    parser.add_argument("--ablations", action="store_true", help="add arms that drop an ingredient or shuffle labels")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME:OPTION=VALUE,...", help="may be repeated")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write rescore.json and rescore.md there")
    options = parser.parse_args(argv)
    from openrlhf_ktae.record.recorded import find, read_groups
    from openrlhf_ktae.report.rescoring import built_in, markdown, rescore

    if options.output:
        require_folder("--output", options.output)
    extra: dict[str, dict[str, Any]] = {}
    for text in options.arm:
        name, chosen = arm(text)
        if name in (*built_in(options.ablations), *extra):
            raise BadOption(f"--arm {text}: this arm name is taken; give another name before the colon")
        extra[name] = chosen
    result = rescore(read_groups(find(options.paths)), options.ablations, extra)
    table = markdown(result)
    print(table, end="")
    if options.output:
        write_both(options.output / "rescore.json", result, table)


def arm(text: str) -> tuple[str, dict[str, Any]]:
    """Parse `name:option=value,option=value`.

    Raises BadOption if the text has another form, or KTAE rejects an option.
    """
    from openrlhf_ktae.ktae.config import KTAEConfig

    name, colon, settings = text.partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair]
    if not name or not colon or not all(equals for _, equals, _ in pairs):
        raise BadOption(
            f"--arm {text}: write NAME:OPTION=VALUE,OPTION=VALUE, such as centred:variant=paper,centre=true"
        )
    try:
        chosen = {option.strip(): _value(value) for option, _, value in pairs}
        KTAEConfig.from_mapping(chosen)
    except (ValueError, TypeError) as error:
        raise BadOption(f"--arm {text}: {error}") from None
    return name, chosen


def _value(text: str) -> Any:
    """Return a number, boolean, word or list; raises `ValueError` if YAML cannot parse it or yields another type."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{text!r} cannot be read; write a number, true, false or a word") from None
    if value is not None and not isinstance(value, (bool, int, float, str, list)):
        raise ValueError(f"{text!r} is a {type(value).__name__}; write a number, true, false or a word")
    return value


if __name__ == "__main__":
    sys.exit(main())
