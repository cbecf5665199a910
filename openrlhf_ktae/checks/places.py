"""Outputs that cannot be written."""

from collections.abc import Iterator
from types import SimpleNamespace

from openrlhf_ktae.base.places import unusable


def place_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the outputs that cannot be written."""
    places = {
        "--run.dir": args.run.dir,
        "--ckpt.output_dir": args.ckpt.output_dir,
        "--ckpt.path": args.ckpt.path,
        "--logger.tensorboard_dir": args.logger.tensorboard_dir,
    }
    for flag, place in places.items():
        if place and (reason := unusable(place)):
            yield f"{flag} {place}: {reason}"
