"""`python -m openrlhf_ktae.cli.gpu_check`: does this project work on this machine? Writes gpu-check.json to share."""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from openrlhf_ktae.backend import resolve
from openrlhf_ktae.backend.base import BACKENDS
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.exit_codes import EXIT_FAILED
from openrlhf_ktae.base.host import check_host
from openrlhf_ktae.checkpoint.files import write_text
from openrlhf_ktae.cli.command import CommandParser, run_command
from openrlhf_ktae.selftest import machine
from openrlhf_ktae.selftest.checking import FAILED, Check, Place, Result, report, run_all
from openrlhf_ktae.selftest.gpu_checks import CHECKS, CONFIGS

OUTPUT = Path("gpu-check.json")
MINUTES = {"one": 10.0, "several": 15.0, "cpu": 40.0}
EXAMPLES = """
examples:
  gpu_check                                    all checks this machine can run, within ten minutes
  gpu_check --only six-steps,memory --keep DIR
  gpu_check --backend cpu --only six-steps     a check that also runs on a CPU

Each check runs in its own process with a time limit; a failure does not stop the others. The GPUs should be idle.
Skipped checks say why. gpu-check.json has no host, user or folder names: it can be posted.
Exit code: 0 when nothing failed, 1 when something did, 2 for refused input, 130 after Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    results: list[Result] = []
    code = run_command(lambda words: run(words, results), argv, "the report has the checks that finished")
    return code or (EXIT_FAILED if any(result.status == FAILED for result in results) else 0)


def run(argv: Sequence[str], results: list[Result]) -> None:
    """Run the checks; keep their outcomes in `results`, also if the run is interrupted."""
    parser = CommandParser("gpu_check", __doc__ or "", EXAMPLES)
    names = ", ".join(check.name for check in CHECKS)
    parser.add_argument("--only", metavar="LIST", help=f"comma-separated, from {names} (default: all)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="auto: cuda if a GPU responds")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help=f"the report (default: {OUTPUT})")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="limit for all checks (default: 10; several GPUs: 15; CPU: 40)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep runs and logs here (default: deleted)")
    options = parser.parse_args(list(argv))
    checks = chosen(options.only)
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise BadOption(f"--minutes {options.minutes:g}: give more than 0")
    if options.keep and options.keep.is_dir() and any(options.keep.iterdir()):
        raise BadOption(f"--keep {options.keep}: is not empty; give a new folder")
    if not options.output.absolute().parent.is_dir():
        raise BadOption(f"--output {options.output}: folder {options.output.parent} does not exist; make it first")
    if options.output.exists() and not options.output.is_file():
        raise BadOption(f"--output {options.output}: is not a file; give the name of one")
    if missing := [path for path in (*CONFIGS, "examples/quickstart/model") if not Path(path).exists()]:
        raise BadOption(f"{missing[0]} not found: run this in the folder of a clone, as `make gpu-check` does")
    check_host()
    backend = resolve(options.backend).name
    found = machine.describe()
    gpus = len(found["gpus"]) if backend == "cuda" else 0
    minutes = options.minutes or MINUTES["cpu" if not gpus else "one" if gpus == 1 else "several"]
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="gpu-check-"))).resolve()
    place, started = Place(str(folder), backend, gpus), time.time()

    def write(results_so_far: list[Result]) -> None:
        results[:] = results_so_far
        content = report(found, place, results, time.time() - started)
        write_text(options.output.absolute(), json.dumps(content, indent=1) + "\n")

    for flag, path, make in (
        ("--keep", options.keep or folder, lambda: folder.mkdir(parents=True, exist_ok=True)),
        ("--output", options.output, lambda: write([])),
    ):
        try:
            make()
        except OSError as error:
            raise BadOption(f"{flag} {path}: cannot be written ({error.strerror}); give another") from None
    devices = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in found["gpus"]) or f"{found['cpus']} CPUs"
    print(f"backend {backend}: {devices}; at most {minutes:g} minutes, report in {options.output}", flush=True)
    try:
        run_all(checks, place, minutes, lambda text: print(text, flush=True), write)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    content = report(found, place, results, time.time() - started)
    print(f"{content['ok']} ok, {content['failed']} failed, {content['skipped']} skipped: {options.output}")


def chosen(text: str | None) -> list[Check]:
    """Return the checks that `--only` names, in their usual order. Raises BadOption if a name is not a check."""
    if text is None:
        return list(CHECKS)
    names = text.split(",")
    known = [check.name for check in CHECKS]
    if unknown := [name for name in names if name not in known]:
        raise BadOption(f"--only {text}: {unknown[0]!r} is not one of {', '.join(known)}")
    return [check for check in CHECKS if check.name in names]


if __name__ == "__main__":
    sys.exit(main())
