"""The host, OpenRLHF: its pinned version, and how to get a class from behind its Ray actor decorator."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import Refusal

HOST_VERSION = "0.11.2"
HOST_CLI = "openrlhf.cli.train_ppo_ray"


def installed(package: str) -> str:
    """Return the version of an installed package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it; None if it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def check_host() -> None:
    """Raise `Refusal` unless OpenRLHF is installed at `HOST_VERSION`.

    The overrides name methods and attributes of that release; a contract test checks each of them.
    """
    found = installed("openrlhf")
    if not found:
        raise Refusal(
            f"OpenRLHF is not installed (openrlhf=={HOST_VERSION}). On a CPU machine run `make setup`; on a GPU "
            "machine run `make setup-gpu`, or follow docs/gpu.md by hand."
        )
    if found != HOST_VERSION:
        raise Refusal(
            f"OpenRLHF {found} is installed; this package extends {HOST_VERSION}. "
            f"Install it with `pip install --no-deps openrlhf=={HOST_VERSION}`: pip would compile flash-attn otherwise."
        )


def undecorated(actor_class: Any) -> Any:
    """Return the plain class behind a `@ray.remote` class, for subclassing.

    Ray refuses to subclass the decorated class (`ActorClassInheritanceException`).
    """
    return actor_class.__ray_metadata__.modified_class.__ray_actor_class__
