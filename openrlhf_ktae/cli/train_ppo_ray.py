"""`python -m openrlhf_ktae.cli.train_ppo_ray`: OpenRLHF's command with KTAE, a CPU backend and a record of the run."""

import gc
import os
import signal
import sys

if __name__ == "__main__":
    gc.disable()  # importing makes no garbage; `launch` enables it
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take seconds, and an interrupt would print a traceback.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted: nothing had started yet\n"), os._exit(130)))

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.backend import Backend, resolve
from openrlhf_ktae.base.errors import BadOption, ProcessDied, Refusal
from openrlhf_ktae.base.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_STOPPED
from openrlhf_ktae.base.host import check_host
from openrlhf_ktae.checkpoint.model_files import SavedInPart
from openrlhf_ktae.checkpoint.write import next_sequence
from openrlhf_ktae.checks.credit_file import credit_needs
from openrlhf_ktae.checks.memory_plan import Plan, make_plan
from openrlhf_ktae.checks.preflight import preflight
from openrlhf_ktae.checks.user_code import log_keys
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.launch.console import Console, deleted_later, summary, untrained
from openrlhf_ktae.launch.launch import Failed, start_importing, train
from openrlhf_ktae.launch.resuming import choose_checkpoint
from openrlhf_ktae.memory.devices import CPU, host_memory, memory_of
from openrlhf_ktae.processes import forks, stacks
from openrlhf_ktae.processes.ending import CleanEnd, EndOrder
from openrlhf_ktae.processes.marks import mark
from openrlhf_ktae.processes.supervisor import supervise
from openrlhf_ktae.processes.watchdog import Watchdog
from openrlhf_ktae.record import directory
from openrlhf_ktae.record.metrics import RunRecord, UnwrittenStop, stop_reason
from openrlhf_ktae.trainer.ray.classes import host_classes

PLAN_FILE = "plan.txt"
NOTHING = "nothing was trained yet"


class Supervised(Exception):
    """The options are valid, and the run needs a supervisor."""

    def __init__(self, restarts: int, checkpoints: Path) -> None:
        super().__init__(restarts)
        self.restarts, self._checkpoints = restarts, checkpoints
        self._first = next_sequence(checkpoints)

    def resume_words(self) -> Sequence[str]:
        """Return the options to resume from the newest checkpoint, or none until this run has written one."""
        return ("--resume", "auto") if next_sequence(self._checkpoints) > self._first else ()


def main(argv: Sequence[str] | None = None, keep_forks: bool = False) -> int:
    """Run the command; return its exit code.

    0, 1 (a Python error), 2 (refused), 3 (stopped early), 4 (a process died), 130 (a signal). With `keep_forks` the
    fork server keeps running, for the next run of a kept stack.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM from a scheduler counts as Ctrl-C
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    words = sys.argv[1:] if argv is None else argv
    try:
        reason = run(words)
    except Supervised as options:
        say = partial(print, file=sys.stderr, flush=True)
        return supervise(words, options.resume_words, options.restarts, say)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (Failed, ProcessDied) as fault:
        print(f"error: {fault}", file=sys.stderr)
        return EXIT_FAULT if isinstance(fault, ProcessDied) else EXIT_FAILED
    except (UnwrittenStop, SavedInPart) as stop:
        reason = str(stop)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: Ray is stopped, saved checkpoints are complete; {interrupt or NOTHING}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        if not keep_forks:
            forks.stop()
    if reason:
        print(f"stopped early: {reason}", file=sys.stderr)
    return EXIT_STOPPED if reason else 0


def run(argv: Sequence[str]) -> str | None:
    """Parse, refuse options that cannot work, train and print a summary; return why training ended early, or None."""
    check_host()
    args = parse_command_line(argv)
    backend = resolve(args.backend)
    changes = backend.adapt(args)
    if not args.run.restarts:
        with suppress(KeyError, OSError, ValueError):  # from bad values, which `preflight` refuses
            start_importing(args, backend)
    notes = preflight(args, backend)
    args.verifier.config = replace(args.verifier.config, reward_log_keys=log_keys(args))
    args.algo.credit.needs = credit_needs(args)
    plan = plan_of(args, backend.name) if args.run.plan else None
    if args.run.restarts:
        raise Supervised(args.run.restarts, Path(args.ckpt.path))
    resumption = choose_checkpoint(args, backend.name)
    directory.prepare(args, backend.name)
    with Console(args.run.dir) as console:
        console.say(f"backend {backend.name}{': ' if changes else ''}{', '.join(changes)}")
        console.say(f"outputs in {Path(args.run.dir).absolute()}")
        for line in (*deleted_later(args), *notes, *resumption):
            console.say(line)
        if plan:
            (Path(args.run.dir) / PLAN_FILE).write_text(plan.table() + "\n", encoding="utf-8")
            console.say(f"plan: {plan.summary()} ({PLAN_FILE})")
            for note in plan.notes:
                console.say(f"note: {note}")
        stopped = _train_watched(args, backend, console)
    print(summary(args))
    reason = stop_reason(args.run.dir) or stopped
    return reason or (None if args.run.resume_step else untrained(args.run.dir))


def _train_watched(args: SimpleNamespace, backend: Backend, console: Console) -> str | None:
    """Train; end cleanly on a signal, and after dumping all stacks on a hang; return why it ended early, or None.

    Raises:
        ProcessDied: a process died; the message names the checkpoint to resume from.
        KeyboardInterrupt: a signal ended the run; the message says what was saved.
    """
    end = CleanEnd(EndOrder(args.run.dir), args.run.grace_seconds, console.say)
    end.install()

    def bark(reason: str) -> None:
        path = Path(args.run.dir) / stacks.FILE
        try:
            count = stacks.dump(os.environ[stacks.VARIABLE], mark(), path)
            reason = f"{reason}; the stacks of {count} processes are in {path}"
        except Exception as error:  # for example a full disk: the run must stop anyway
            reason = f"{reason}; no stacks, {type(error).__name__}: {error}"
        try:
            with suppress(UnwrittenStop):  # the command's last line prints the reason
                RunRecord(args.run.dir).stopped(reason)
        finally:
            end.stop_now(reason)

    try:
        with Watchdog(args.run.dir, args.run.watchdog_minutes, bark):
            train(args, backend, console.say, host_classes)
    except (Failed, ProcessDied) as fault:
        raise type(fault)(f"{fault}; {directory.newest_checkpoint(args)}") from None
    except KeyboardInterrupt:
        if not end.reason:
            raise KeyboardInterrupt(end.outcome(directory.newest_checkpoint(args))) from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        end.order.clear()
    return end.reason or None


def plan_of(args: SimpleNamespace, backend: str) -> Plan:
    """Return the plan of a run on this machine.

    Raises BadOption with the reasons if the run cannot work; a reason about memory names a change that makes it fit.
    """
    device = CPU if backend == CPU else "auto"
    memory = memory_of(device, args.actor.num_gpus_per_node)
    beside_gpus = None if device == CPU or memory is None else host_memory()
    plan = make_plan(args, device, memory, host_memory=beside_gpus)
    if plan.problems:
        raise BadOption("\nerror: ".join([*plan.problems, "(--run.plan false trains without this check)"]))
    return plan


if __name__ == "__main__":
    sys.exit(main())
