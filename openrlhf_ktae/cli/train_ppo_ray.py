"""`python -m openrlhf_ktae.cli.train_ppo_ray`: OpenRLHF's command with KTAE, a CPU backend and a record of the run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_ktae.backend import BackendUnavailable, resolve
from openrlhf_ktae.cli.host_parser import EXIT_BAD_INPUT, BadOption
from openrlhf_ktae.host import HostMismatch, check_host


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 2 for refused input, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        from openrlhf_ktae.cli.options import parse_command_line
        from openrlhf_ktae.run.launch import train
        from openrlhf_ktae.run.preflight import preflight

        check_host()
        args = parse_command_line(words)
        backend = resolve(args.backend)
        preflight(args, backend)
        for change in backend.adapt(args):
            print(f"backend {backend.name}: {change}")
        train(args, backend)
    except (BadOption, BackendUnavailable, HostMismatch) as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
