"""`python -m openrlhf_ktae.cli.compare ARM.yaml... --seeds N`: train each arm with N seeds, compare in one table."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.exit_codes import EXIT_FAILED
from openrlhf_ktae.cli.command import CommandParser, at_least_1, run_command
from openrlhf_ktae.compare.comparison import (
    Outcomes,
    arm_table,
    compare_arms,
    markdown,
    notes,
    read_outcomes,
    test_table,
)
from openrlhf_ktae.compare.run_outcomes import BadRun, Run
from openrlhf_ktae.compare.runs import ArmRun
from openrlhf_ktae.evaluation.results import require_folder, write_both

BASELINE = "grpo"
EXAMPLES = """
examples:
  configs/compare/*.yaml --seeds 10 --output runs/compare
  configs/compare/*.yaml --seeds 10 --report_only --pair grpo_ktae_paper:grpo_ktae_shuffled
  configs/compare/grpo.yaml configs/compare/grpo_ktae_paper.yaml --seeds 2 -- --data.max_samples 80

Each arm is a --config file and takes its name. Intervals need 2 seeds, small p-values 6 or more. Arguments after -- go
to every run. To resume a killed comparison, run the same command again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if runs failed, 2 for refused input, 130 after Ctrl-C."""
    failed: list[ArmRun] = []
    code = run_command(lambda words: failed.extend(run(words)), argv)
    return code or (EXIT_FAILED if failed else 0)


def run(argv: Sequence[str]) -> list[ArmRun]:
    """Train the missing runs, write the tables and the page; return the runs that failed."""
    from openrlhf_ktae.compare.runs import execute_all, plan

    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    parser = CommandParser("compare", __doc__ or "", EXAMPLES)
    parser.add_argument("arms", nargs="+", type=Path, metavar="ARM.yaml", help="one configuration for each arm")
    parser.add_argument("--seeds", type=at_least_1, default=3, metavar="N", help="seeds of each arm (default: 3)")
    parser.add_argument("--first_seed", type=int, default=1, metavar="S", help="seeds are S, S + 1, ... (default: 1)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compare"), metavar="DIR", help="(default: runs/compare)"
    )
    parser.add_argument("--baseline", metavar="ARM", help=f"arm to compare with (default: {BASELINE}, else the first)")
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="ARM:OTHER",
        help="also test this pair, as a control (may be repeated)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.7, help="training reward that counts as learned (default: 0.7)"
    )
    parser.add_argument(
        "--stacks", type=at_least_1, default=1, metavar="N", help="runs at a time; they share the cores (default: 1)"
    )
    parser.add_argument(
        "--add", type=Path, metavar="FILE", help="comparison.json of the same arms with other seeds, to report together"
    )
    parser.add_argument("--report_only", action="store_true", help="train nothing; compare the finished runs")
    options = parser.parse_args(words[:split])
    names = [path.stem for path in options.arms]
    baseline = options.baseline or (BASELINE if BASELINE in names else names[0])
    if baseline not in names:
        raise BadOption(f"--baseline {baseline}: not one of the arms {', '.join(names)}")
    pairs = [_pair(text, names) for text in options.pair]
    require_folder("--output", options.output)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    earlier = _earlier(options.add, names, seeds) if options.add else {}
    runs = plan(options.arms, seeds, options.output, words[split + 1 :])
    failed = [] if options.report_only else execute_all(runs, partial(print, flush=True), options.stacks)
    write(runs, options.output, baseline, options.threshold, pairs, earlier)
    return failed


def _pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    arm, colon, other = text.partition(":")
    if not colon or arm == other or not {arm, other} <= set(names):
        raise BadOption(f"--pair {text}: give two of the arms {', '.join(names)} as ARM:OTHER")
    return arm, other


def _earlier(path: Path, names: Sequence[str], seeds: range) -> Outcomes:
    """Return the outcomes of these arms in an earlier comparison. Raises BadOption if it has none or shares a seed."""
    earlier = {arm: of_arm for arm, of_arm in read_outcomes(path).items() if arm in names}
    if not earlier:
        raise BadOption(f"--add {path}: has none of the arms {', '.join(names)}, which are named by their files")
    if twice := sorted(seed for of_arm in earlier.values() for seed in of_arm if seed in seeds):
        raise BadOption(f"--add {path}: has seed {twice[0]} too; choose other seeds with --first_seed")
    return earlier


def write(
    runs: Sequence[ArmRun],
    output: Path,
    baseline: str,
    threshold: float,
    pairs: Sequence[tuple[str, str]],
    earlier: Outcomes,
) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.html` of the successful runs and `earlier` outcomes."""
    from openrlhf_ktae.compare.run_outcomes import read_run
    from openrlhf_ktae.report.curves import NoPlotly
    from openrlhf_ktae.report.run_page import Table, write_run_page

    arms: dict[str, dict[int, Run]] = {}
    for one in runs:
        if one.done:
            arms.setdefault(one.arm, {})[one.seed] = read_run(one.directory)
    if baseline not in arms:
        raise BadRun(f"{output}: no run of the baseline {baseline} succeeded; see its train.log")
    result = compare_arms(arms, baseline, threshold, [pair for pair in pairs if {*pair} <= set(arms)], earlier)
    table = markdown(result)
    write_both(output / "comparison.json", result, table)
    print(table)
    tables = [Table("Arms", *arm_table(result), notes(result)), Table("Paired tests", *test_table(result))]
    everything = [run for seeds in arms.values() for run in seeds.values()]
    print(f"tables in {output}: comparison.md, comparison.json")
    try:
        print(f"page: {write_run_page(everything, output / 'comparison.html', 'Comparison', tables)}")
    except NoPlotly as missing:
        print(f"no page: {missing}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
