"""`python -m openrlhf_ktae.cli.selftest resume --config FILE`: does this configuration survive a death, to the bit?"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from openrlhf_ktae.cli.command import CommandParser, run_command
from openrlhf_ktae.cli.host_parser import BadOption
from openrlhf_ktae.run.resume_trial import EPISODES, Trial, TrialFailed, try_resume

EXIT_DIFFERENT = 1
EXAMPLES = """
examples:
  resume --config configs/grpo_ktae/quickstart.yaml
  resume --config my.yaml --steps 6 --kills 3 -- --actor.num_gpus_per_node 2 --vllm.num_engines 2

The configuration is trained on a few steps with --train.full_determinism_enable: once, once more, and once killed at
random moments (kill -9 of all processes) and resumed. Steps, figures and final weights must be the same; the first
difference is printed. Words after -- go to every run. Nothing outside --output is written.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 for equal runs, 1 for a difference, 2 for refused input, 130 after Ctrl-C."""
    found: list[str] = []
    code = run_command(lambda words: found.extend(run(words)), argv, (TrialFailed,))
    for difference in found:
        print(f"DIFFERENT: {difference}")
    return code or (EXIT_DIFFERENT if found else 0)


def run(argv: Sequence[str]) -> list[str]:
    """Make the runs; return the differences."""
    from openrlhf_ktae.cli.options import parse_command_line

    words = list(argv)
    split = words.index("--") if "--" in words else len(words)
    parser = CommandParser("selftest", __doc__ or "", EXAMPLES)
    parser.add_argument("what", choices=("resume",), help="what is tested")
    parser.add_argument("--config", action="append", default=[], metavar="FILE.yaml", help="options, as for training")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="steps of each run, even (default: 4)")
    parser.add_argument("--kills", type=int, default=1, metavar="N", help="deaths of the killed run (default: 1)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the moments (default: by the clock)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the runs here (default: deleted at the end)")
    options = parser.parse_args(words[:split])
    if options.steps < EPISODES or options.steps % EPISODES:
        raise BadOption(f"--steps {options.steps}: two episodes are played; give an even number")
    if options.output and options.output.exists() and any(options.output.iterdir()):
        raise BadOption(f"--output {options.output}: is not empty; give a new folder")
    given = [word for file in options.config for word in ("--config", file)] + words[split + 1 :]
    args = parse_command_line([*given, "--train.full_determinism_enable"])
    seed = int(time.time()) if options.seed is None else options.seed
    started = time.time()

    def say(text: str) -> None:
        print(f"[{time.time() - started:5.1f} s] {text}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        prompts = options.steps // EPISODES * args.rollout.batch_size
        found = try_resume(Trial(given, folder.resolve(), prompts), options.kills, seed, say)
    if not found:
        say(f"equal: steps, figures and final weights (--seed {seed})")
    return found


if __name__ == "__main__":
    sys.exit(main())
