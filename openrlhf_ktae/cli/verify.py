"""Audit answers: `python -m openrlhf_ktae.cli.verify FILE`.

Grades a JSONL (also .gz) or parquet file of responses, checks each gold against itself and compares with a stored
reward or a second grader. Exit code: 0, 1 if a share is above its threshold, 2 if the audit cannot run.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput, BadOption
from openrlhf_ktae.base.exit_codes import EXIT_BAD_INPUT
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short_repr
from openrlhf_ktae.cli.dataclass_options import add_dataclass_options, build
from openrlhf_ktae.evaluation.stored import text_lines
from openrlhf_ktae.verifier.audit import Audit, Graded, Row, audit
from openrlhf_ktae.verifier.config import VerifierConfig
from openrlhf_ktae.verifier.graders import HOST, MATH_VERIFY
from openrlhf_ktae.verifier.verdict import UNKNOWN, Status, Verdict

TRAINING_ONLY = tuple(
    "reward_file correct_threshold reward_timeout_s reward_log_keys max_unknown_share unknown_window".split()
)
SHOWN = 60  # characters of a gold or an answer in the table


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m openrlhf_ktae.cli.verify", description=__doc__, allow_abbrev=False)
    made.add_argument("file", type=Path, help="JSONL, JSONL.gz or parquet, one response per row")
    columns = made.add_argument_group("Columns (a.b reaches into nested objects)")
    columns.add_argument("--gold_key", default="gold", help="(default: gold)")
    columns.add_argument("--response_key", default="response", help="(default: response)")
    columns.add_argument("--reward_key", help="stored reward to compare with")
    columns.add_argument("--reward_threshold", type=float, default=0.5, help="correct if above (default: 0.5)")
    columns.add_argument("--group_key", help="one table row per value, for example the benchmark")
    what = made.add_argument_group("Audit")
    what.add_argument("--golds_only", action="store_true", help="check the golds only; the file needs no responses")
    what.add_argument(
        "--second",
        choices=(HOST, MATH_VERIFY),
        help="compare with the host's grader or with plain math-verify; both run in processes with limits",
    )
    what.add_argument("--output", type=Path, help="all findings as JSONL (default: NAME.audit.jsonl)")
    what.add_argument("--show", type=int, default=20, help="findings to print (default: 20)")
    limits = made.add_argument_group("Exit code 1 above these shares")
    limits.add_argument("--max_unknown", type=float, default=0.01, help="of responses (default: 0.01)")
    limits.add_argument("--max_disagreement", type=float, default=0.05, help="of responses (default: 0.05)")
    limits.add_argument("--max_gold_failure", type=float, default=0.01, help="of distinct golds (default: 0.01)")
    add_dataclass_options(made.add_argument_group("Verifier"), VerifierConfig, "verifier", skip=TRAINING_ONLY)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit and return the exit code."""
    args = parser().parse_args(argv)
    try:
        settings = {name.removeprefix("verifier."): value for name, value in vars(args).items()}
        config = build(VerifierConfig, settings, "verifier")
        rows = list(read_rows(args))
        output = args.output or Path(f"{args.file.name.split('.')[0]}.audit.jsonl")
        result = audit(rows, config, args.reward_threshold, args.second or "")
        write_findings(output, result)
    except (BadInput, BadOption, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print_tables(result, args.second or "", args.show)
    print(f"findings  {output}")
    responses, golds = max(len(result.graded), 1), max(result.golds, 1)
    shares = {
        "unknown": sum(g.verdict.status == UNKNOWN for g in result.graded) / responses,
        "disagreement": sum(g.disagrees(g.stored) or g.disagrees(g.second) for g in result.graded) / responses,
        "gold_failure": sum(fault.fails_itself for fault in result.gold_faults) / golds,
    }
    exceeded = [
        f"{name} {share:.2%} is above {limit:.2%} (--max_{name})"
        for name, share in shares.items()
        if share > (limit := getattr(args, f"max_{name}"))
    ]
    print("\n".join(exceeded) or "all shares are within their limits")
    return 1 if exceeded else 0


# --- reading ---


def read_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the file. Raises BadInput with the line if a row cannot be read."""
    path: Path = args.file
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    count = 0
    for line, record in _parquet(path) if path.suffix == ".parquet" else _json_lines(path):
        count += 1
        response = None
        if not args.golds_only:
            response = _value(record, args.response_key, "--response_key", path, line)
            if not isinstance(response, str):
                raise BadInput(f"{path}, line {line}: {args.response_key} is {short_repr(response, SHOWN)}, not a text")
        group = str(_value(record, args.group_key, "--group_key", path, line)) if args.group_key else "all"
        yield Row(
            line,
            _value(record, args.gold_key, "--gold_key", path, line),
            response,
            _reward(record, args, path, line) if args.reward_key else None,
            group.encode("utf-8", "replace").decode(),
        )
    if count == 0:
        raise BadInput(f"{path} has no rows")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in text_lines(path):
        try:
            record = parse_json(text)
        except ValueError as error:
            raise BadInput(f"{path}, line {line}: not JSON ({error}): {text.strip()[:60]!r}") from None
        if not isinstance(record, dict):
            raise BadInput(f"{path}, line {line}: not a JSON object but {text.strip()[:60]!r}")
        yield line, record


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"{path}: parquet needs pyarrow (pip install pyarrow)") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path}: not a parquet file: {error}") from None
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{path}: a column has invalid text or dates ({error}); write it again") from None


def _value(record: dict[str, Any], key: str, option: str, path: Path, line: int) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise BadInput(f"{path}, line {line}: no column {key!r}; columns are {', '.join(record)}. Use {option}")
        value = value[part]
    return value


def _reward(record: dict[str, Any], args: argparse.Namespace, path: Path, line: int) -> float | None:
    value = _value(record, args.reward_key, "--reward_key", path, line)
    if value is None:
        return None
    try:
        reward = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{path}, line {line}: {args.reward_key} is {short_repr(value, SHOWN)}, not a number") from None
    return None if math.isnan(reward) else reward


# --- writing ---


def write_findings(output: Path, result: Audit) -> None:
    """Write one JSON object for each faulty gold, unknown verdict and disagreement."""
    records: list[dict[str, Any]] = [
        {"finding": "gold", "line": fault.row.line, "gold": fault.row.gold, "reason": fault.reason}
        for fault in result.gold_faults
    ]
    records += [
        {
            "finding": finding(graded),
            "line": graded.row.line,
            "group": graded.row.group,
            "gold": graded.row.gold,
            "extracted": graded.verdict.extracted,
            "status": graded.verdict.status,
            "reason": graded.verdict.reason,
            "stored": _accepted(graded.stored),
            "second": _accepted(graded.second),
            "second_reason": graded.second.reason if graded.second else "",
        }
        for graded in result.graded
        if finding(graded)
    ]
    try:
        output.write_text("".join(json.dumps(record, default=str) + "\n" for record in records), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error}. Use --output") from None


def _accepted(verdict: Verdict | None) -> bool | None:
    return verdict.status == Status.CORRECT if verdict is not None and verdict.known else None


def finding(graded: Graded) -> str:
    """Return the finding about a verdict, unknown or a disagreement; empty if there is none."""
    if graded.verdict.status == UNKNOWN:
        return "unknown"
    others = {"stored": graded.stored, "second": graded.second}
    against = [name for name, other in others.items() if graded.disagrees(other)]
    return " ".join(["disagrees with", *against]) if against else ""


def print_tables(result: Audit, second: str, shown: int) -> None:
    """Print a row for each group, then the golds and the first findings."""
    groups: dict[str, list[Graded]] = {}
    for graded in result.graded:
        groups.setdefault(graded.row.group, []).append(graded)
    if len(groups) > 1:
        groups["all"] = result.graded
    stored = any(graded.stored is not None for graded in result.graded)
    head = ["group", "rows", "correct", "wrong", "unknown", "accuracy"]
    head += ["stored", "differ"] if stored else []
    head += [second, "differ"] if second else []
    table = [head, *([name, *_counts(members, stored, bool(second))] for name, members in groups.items())]
    if groups:
        _print_columns(table)
    failing = sum(fault.fails_itself for fault in result.gold_faults)
    print(
        f"golds     {result.golds} distinct, {failing} fail against themselves, "
        f"{len(result.gold_faults) - failing} can only be compared as text"
    )
    for fault in result.gold_faults[:shown]:
        print(f"  line {fault.row.line}: {short_repr(fault.row.gold, SHOWN)}: {fault.reason}")
    found = [graded for graded in result.graded if finding(graded)]
    for graded in found[:shown]:
        print(
            f"  line {graded.row.line}: {finding(graded)}: {graded.verdict.status} ({graded.verdict.reason}), "
            f"gold {short_repr(graded.row.gold, SHOWN)}, answer {short_repr(graded.verdict.extracted, SHOWN)}"
        )
    if len(found) > shown:
        print(f"  ... and {len(found) - shown} more in the file")


def _counts(members: list[Graded], stored: bool, second: bool) -> list[str]:
    total = len(members)
    statuses = [graded.verdict.status for graded in members]
    cells = [str(total), *(str(statuses.count(status)) for status in Status)]
    cells.append(f"{statuses.count(Status.CORRECT) / total:.1%}")
    for shown, others in ((stored, [g.stored for g in members]), (second, [g.second for g in members])):
        if shown:
            cells.append(f"{sum(bool(_accepted(other)) for other in others) / total:.1%}")
            cells.append(str(sum(map(Graded.disagrees, members, others))))
    return cells


def _print_columns(table: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))


if __name__ == "__main__":
    sys.exit(main())
