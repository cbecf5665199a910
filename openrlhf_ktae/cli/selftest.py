"""`python -m openrlhf_ktae.cli.selftest resume --config FILE`: does a killed run resume to bit-identical results?"""

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.exit_codes import EXIT_FAILED
from openrlhf_ktae.cli.command import CommandParser, at_least_1, run_command
from openrlhf_ktae.selftest.killing import EVERYTHING, ROOM, VICTIMS
from openrlhf_ktae.selftest.mortal_run import try_resume
from openrlhf_ktae.selftest.trial import EPISODES, Trial, TrialFailed

ALL = "all"
STEPS_A_DEATH = 4
EXAMPLES = """
examples:
  resume --config configs/grpo_ktae/quickstart.yaml
  resume --config configs/grpo_ktae/quickstart.yaml --kills 6 --victims all
  resume --config my.yaml --steps 6 --kills 3 -- --actor.num_gpus_per_node 2 --vllm.num_engines 2

The configuration trains for a few steps with --train.full_determinism_enable: twice without faults, and once with
processes killed (kill -9) at random moments. --victims chooses them: everything, the driver (the command only), a rank
of the trainer, an engine (its actor, or vLLM's core), a verifier worker, or everything while a checkpoint is being
written. The run is resumed unless it recovers by itself. After each kill its checkpoints are verified, and at most
--save_steps steps may be lost. In the end its steps, metrics and final weights must equal those of the uninterrupted
run. The first difference is printed. Arguments after -- go to every run. Nothing is written outside --output; without
it, the runs go to a temporary folder, which is kept only if something fails or differs.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the runs are equal, 1 if they differ, 2 for refused input, 130 after Ctrl-C."""
    found: list[str] = []
    code = run_command(lambda words: found.extend(run(words)), argv, "nothing was compared")
    for difference in found:
        print(f"DIFFERENT: {difference}")
    return code or (EXIT_FAILED if found else 0)


def run(argv: Sequence[str]) -> list[str]:
    """Run the trial; return the differences."""
    from openrlhf_ktae.cli.options import parse_command_line

    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    parser = CommandParser("selftest", __doc__ or "", EXAMPLES)
    parser.add_argument("what", choices=("resume",), help="the test to run")
    parser.add_argument("--config", action="append", default=[], metavar="FILE.yaml", help="options of training")
    parser.add_argument(
        "--steps", type=int, metavar="N", help=f"steps of each run, an even number (default: {STEPS_A_DEATH} per kill)"
    )
    parser.add_argument(
        "--kills", type=at_least_1, default=1, metavar="N", help="kills in the interrupted run (default: 1)"
    )
    parser.add_argument(
        "--victims",
        default=EVERYTHING,
        metavar="LIST",
        help=f"killed in turn, in random order: {ALL}, or some of {','.join(VICTIMS)} (default: {EVERYTHING})",
    )
    parser.add_argument(
        "--save_steps", type=at_least_1, default=1, metavar="N", help="steps between checkpoints (default: 1)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the kill times (default: from the clock)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="keep the runs here (default: deleted unless one fails)"
    )
    options = parser.parse_args(words[:split])
    victims = victims_of(options.victims)
    steps = STEPS_A_DEATH * options.kills if options.steps is None else options.steps
    if steps < EPISODES or steps % EPISODES:
        raise BadOption(f"--steps {steps}: each run has two episodes; give an even number")
    if steps <= ROOM:
        raise BadOption(f"--steps {steps}: the last kill must leave {ROOM} steps; give more")
    if options.output and options.output.exists() and any(options.output.iterdir()):
        raise BadOption(f"--output {options.output}: is not empty; give a new folder")
    given = [word for file in options.config for word in ("--config", file)] + words[split + 1 :]
    args = parse_command_line([*given, "--train.full_determinism_enable"])
    seed = int(time.time()) if options.seed is None else options.seed
    started = time.time()

    def say(text: str) -> None:
        print(f"[{time.time() - started:5.1f} s] {text}", flush=True)

    folder = (options.output or Path(tempfile.mkdtemp(prefix="selftest-"))).resolve()
    trial = Trial(given, folder, steps // EPISODES * args.rollout.batch_size, options.save_steps)
    say(f"--seed {seed}; runs in {folder}")
    keep = options.output is not None
    try:
        found = try_resume(trial, options.kills, seed, say, victims)
        keep = keep or bool(found)
    except (TrialFailed, OSError) as failure:
        keep = True
        raise TrialFailed(f"{failure}\n(--seed {seed}; the runs are kept in {folder})") from None
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if not found:
        say(f"equal: steps, metrics and final weights (--seed {seed})")
    return found


def victims_of(text: str) -> tuple[str, ...]:
    """Return the victims that `--victims` names. Raises BadOption if a name is unknown."""
    names = VICTIMS if text == ALL else tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in VICTIMS]
    if unknown:
        raise BadOption(f"--victims {text}: {unknown[0]!r} is not one of {ALL}, {', '.join(VICTIMS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
