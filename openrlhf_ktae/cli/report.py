"""`python -m openrlhf_ktae.cli.report RUN_DIR...`: token-credit pages of recorded rollouts, and training curves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.cli.command import CommandParser, at_least_1, load_tokenizer, run_command
from openrlhf_ktae.compare.run_outcomes import BadRun
from openrlhf_ktae.evaluation.results import require_folder

GROUPS = 16
EXAMPLES = """
examples:
  runs/quickstart                                     report/runs.html and report/tokens.html in it
  runs/compare/*/seed-* --output report               arms over seeds, with intervals
  --responses results/base/responses.jsonl --output report
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(run, argv)


def run(argv: Sequence[str]) -> None:
    """Write the pages and print their paths."""
    parser = CommandParser("report", __doc__ or "", EXAMPLES)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR", help="run directories")
    parser.add_argument("--responses", type=Path, metavar="FILE", help="show the token credit of stored responses")
    parser.add_argument("--tokenizer", metavar="NAME", help="with --responses: split into its tokens, not words")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: report/ in the first run directory")
    parser.add_argument(
        "--groups",
        type=at_least_1,
        metavar="N",
        help=f"show the first N groups of each step (default: {GROUPS}), or N problems of FILE (default: all)",
    )
    options = parser.parse_args(argv)
    if bool(options.runs) == bool(options.responses):
        raise BadOption("give run directories, or --responses FILE")
    folder = options.output or (Path("report") if options.responses else options.runs[0] / "report")
    if options.output or folder.parent.is_dir():
        require_folder("--output", folder)
    if options.responses:
        _responses(options.responses, options.tokenizer, folder, options.groups)
    else:
        _runs(options.runs, folder, options.groups or GROUPS)


def _responses(path: Path, name: str | None, folder: Path, groups: int | None) -> None:
    from openrlhf_ktae.report.credit_page import write_credit_pages
    from openrlhf_ktae.report.stored_groups import stored_groups

    tokenizer = load_tokenizer(name, "--tokenizer") if name else None
    found = stored_groups(path, tokenizer, groups)
    print(*write_credit_pages(found, folder, f"Token credit: {path.name}"), sep="\n")


def _runs(paths: Sequence[Path], folder: Path, groups: int) -> None:
    """Write the token-credit pages, which need neither plotly nor a finished step, then the curves."""
    from openrlhf_ktae.compare.run_outcomes import Run, arm_labels, arm_of, read_run
    from openrlhf_ktae.record.recorded import find, read_groups
    from openrlhf_ktae.record.rollouts import DIRECTORY
    from openrlhf_ktae.report.credit_page import write_credit_pages
    from openrlhf_ktae.report.run_page import write_run_page

    paths = list({path.resolve(): path for path in paths}.values())  # drop duplicates: one run is one seed
    labels = arm_labels(map(arm_of, paths))
    runs: list[Run] = []
    pages: list[Path] = []
    for path in paths:
        recorded = any((path / DIRECTORY).glob("*.parquet"))
        try:
            runs.append(read_run(path))
        except BadRun:
            if not recorded:
                raise
        if recorded:
            arm = arm_of(path)
            label = str(labels[arm] / path.resolve().relative_to(arm))
            name = "tokens" if len(paths) == 1 else f"tokens-{label.strip('/').replace('/', '-')}"
            found, title = read_groups(find([path])), f"Token credit: {path.resolve().name}"
            written = write_credit_pages(found, folder, title, name, groups, [page.name for page in pages])
            print(*written, sep="\n")
            pages += written
    if runs:
        title = arm_of(runs[0].path).name if len(runs) == 1 else f"{len(runs)} runs"
        print(write_run_page(runs, folder / "runs.html", title, links=[page.name for page in pages]))
    if not pages:
        print("no token-credit page: no rollouts were recorded (--ktae.record_rollouts N)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
