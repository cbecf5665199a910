"""`python -m openrlhf_ktae.cli.plan --config ... --nodes N --gpus_per_node M --gpu h100-80g`: plan a run."""

import sys
from collections.abc import Sequence

from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks.memory_plan import make_plan
from openrlhf_ktae.cli.command import CommandParser, run_command
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.memory.devices import CPU, GIB, GPUS, memory_of

ABOUT = "Plan a run: batches, memory of each phase, golds. Other options are those of training."


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if the run fits, 2 if it cannot work."""
    return run_command(run, argv)


def run(argv: Sequence[str]) -> None:
    """Print the plan and its notes. Raises BadOption with the reasons why the run cannot work."""
    parser = CommandParser("plan", ABOUT)
    parser.add_argument("--nodes", type=int, help="nodes of the cluster (default: as many as the run needs)")
    parser.add_argument(
        "--gpus_per_node", "--gpus-per-node", type=int, help="devices per node (default: --actor.num_gpus_per_node)"
    )
    parser.add_argument("--gpu", choices=(*GPUS, CPU, "auto"), default="auto", help="auto: the first local GPU")
    parser.add_argument("--host_memory", "--host-memory", type=float, metavar="GIB", help="CPU memory of a node")
    own, words = parser.parse_known_args(argv)
    args = parse_command_line(words)
    nodes, per_node = own.nodes or None, own.gpus_per_node or None
    if nodes:
        per_node = per_node or args.actor.num_gpus_per_node
    elif per_node:
        nodes = -(-devices_needed(args) // per_node)
    device = CPU if args.backend == CPU else own.gpu
    host_memory = own.host_memory * GIB if own.host_memory else None
    plan = make_plan(args, device, memory_of(device, args.actor.num_gpus_per_node), nodes, per_node, host_memory)
    print(plan.table())
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if plan.problems:
        raise BadOption("\nerror: ".join(plan.problems))


if __name__ == "__main__":
    sys.exit(main())
