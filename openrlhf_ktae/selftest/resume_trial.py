"""Does a configuration give the same result twice, and after deaths? Tested on a few of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from openrlhf_ktae.selftest.killing import EVERYTHING, planned
from openrlhf_ktae.selftest.mortal_run import MortalRun
from openrlhf_ktae.selftest.trial import AGAIN, KILLED, STRAIGHT, Trial


def try_resume(
    trial: Trial, kills: int, seed: int, say: Callable[[str], None], victims: Sequence[str] = (EVERYTHING,)
) -> list[str]:
    """Run twice without faults, and once with `kills` deaths at random moments; return faults and differences.

    Raises:
        TrialFailed: a run failed by itself.
    """
    say("one uninterrupted run")
    started = time.time()
    trial.finish(STRAIGHT)
    start_seconds = trial.steps(STRAIGHT)[0]["time"] - started
    say("the same again")
    trial.finish(AGAIN)
    mortal = MortalRun(trial, KILLED, start_seconds, seed)
    for number, death in enumerate(planned(kills, victims, len(trial.steps(STRAIGHT)), seed), 1):
        what = mortal.inject(death)
        say(f"death {number}: {what}" if what else "it had ended; no further death")
        if not what:
            break
    mortal.finish()
    say(f"ended; {mortal.toll.summary()}")
    what_for = {AGAIN: "the same run twice", KILLED: "killed and resumed"}
    found = [f"{text}: {difference}" for name, text in what_for.items() if (difference := trial.difference(name))]
    return [*mortal.toll.wrong, *found]
