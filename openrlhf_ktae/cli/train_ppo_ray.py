"""`python -m openrlhf_ktae.cli.train_ppo_ray`: OpenRLHF's command with KTAE, a CPU backend and a record of the run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace

from openrlhf_ktae.backend import BackendUnavailable, resolve
from openrlhf_ktae.checkpoint.resume import CannotResume
from openrlhf_ktae.cli.host_parser import EXIT_BAD_INPUT, BadOption
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.host import HostMismatch, check_host
from openrlhf_ktae.plan.devices import CPU, memory_of
from openrlhf_ktae.plan.planner import Plan, make_plan
from openrlhf_ktae.run import directory
from openrlhf_ktae.run.console import Console, summary
from openrlhf_ktae.run.launch import ClusterTooSmall, train
from openrlhf_ktae.run.preflight import Refused, preflight
from openrlhf_ktae.run.record import stop_reason
from openrlhf_ktae.run.resuming import choose_checkpoint

EXIT_STOPPED = 3
PLAN_FILE = "plan.txt"
EXIT_INTERRUPTED = 130
REFUSALS = (BadOption, BackendUnavailable, CannotResume, ClusterTooSmall, HostMismatch, Refused)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for refused input, 3 for an early stop, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        reason = run(sys.argv[1:] if argv is None else argv)
    except REFUSALS as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: Ray is stopped, saved checkpoints are whole", file=sys.stderr)
        return EXIT_INTERRUPTED
    if reason:
        print(f"stopped early: {reason}", file=sys.stderr)
    return EXIT_STOPPED if reason else 0


def run(argv: Sequence[str]) -> str | None:
    """Parse, refuse what cannot work, train, and say what came of it; return why training ended early, if it did."""
    check_host()
    args = parse_command_line(argv)
    backend = resolve(args.backend)
    changes = backend.adapt(args)
    preflight(args, backend)
    plan = plan_of(args, backend.name) if args.run.plan else None
    resumption = choose_checkpoint(args, backend.name)
    directory.prepare(args, backend.name)
    with Console(args.run.dir) as console:
        console.say(f"backend {backend.name}{': ' if changes else ''}{', '.join(changes)}")
        for line in resumption:
            console.say(line)
        if plan:
            (Path(args.run.dir) / PLAN_FILE).write_text(plan.table() + "\n", encoding="utf-8")
            console.say(f"plan: {plan.summary()} ({PLAN_FILE})")
        train(args, backend, console.say)
    print(summary(args))
    return stop_reason(args.run.dir)


def plan_of(args: SimpleNamespace, backend: str) -> Plan:
    """Return the plan of a run on this machine.

    Raises:
        Refused: the run cannot work; each reason has the smallest change that would make it possible.
    """
    device = CPU if backend == CPU else "auto"
    plan = make_plan(args, device, memory_of(device, args.actor.num_gpus_per_node))
    if plan.problems:
        raise Refused("\nerror: ".join([*plan.problems, "(--run.plan false trains without this check)"]))
    return plan


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Treat a scheduler's SIGTERM as Ctrl-C, so that Ray is shut down."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
