"""`python -m openrlhf_ktae.cli.train_many`: training commands one after the other, if possible in one started stack.

Reads lines of JSON, `{"words": [...], "log": PATH}`, from standard input. Answers each line with the run's exit code;
the run's output goes to the log. Ends at the end of the input, or after the first run that fails.
"""

import json
import os
import sys
from functools import partial

from openrlhf_ktae.base.exit_codes import EXIT_STOPPED
from openrlhf_ktae.cli import train_ppo_ray
from openrlhf_ktae.launch.stack import Stack
from openrlhf_ktae.processes import forks
from openrlhf_ktae.processes.marks import mark


def main() -> int:
    """Run the commands; return the exit code of the last one."""
    answers = os.fdopen(os.dup(1), "w")
    mark()  # one for all runs, because it is part of the stack's environment
    stack, before, code = Stack(keep=True), dict(os.environ), 0
    train_ppo_ray.train = partial(train_ppo_ray.train, stack=stack)
    try:
        for line in iter(sys.stdin.readline, ""):
            order = json.loads(line)
            with open(order["log"], "ab", buffering=0) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            code = train_ppo_ray.main(order["words"], keep_forks=True)
            sys.stdout.flush()
            server = {name: value for name, value in os.environ.items() if name == forks.VARIABLE}
            # Otherwise the next run would take this run's settings for the user's. The server's address stays, because
            # vLLM considers its core dead once the fork server has ended.
            forks.replace_environment(before | server)
            print(code, file=answers, flush=True)
            if code not in (0, EXIT_STOPPED):
                break
    finally:
        stack.end()
    return code


if __name__ == "__main__":
    sys.exit(main())
