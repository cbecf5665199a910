"""The host, OpenRLHF: its pinned version, and how to reach a class behind a Ray actor decorator."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

HOST_VERSION = "0.11.2"


class HostMismatch(RuntimeError):
    """OpenRLHF is missing or is another release than the one that this package extends."""


def check_host() -> None:
    """Raise `HostMismatch` unless OpenRLHF is installed at `HOST_VERSION`.

    The overrides name methods and attributes of that release; a contract test holds each of them.
    """
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise HostMismatch(
            f"OpenRLHF is not installed. A CPU machine: `make setup`. A GPU machine: `pip install .[gpu]` "
            f"(openrlhf=={HOST_VERSION})."
        ) from None
    if found != HOST_VERSION:
        raise HostMismatch(
            f"OpenRLHF {found} is installed; this package extends {HOST_VERSION}. "
            f"Install it with `pip install openrlhf=={HOST_VERSION}`."
        )


def undecorated(actor_class: Any) -> Any:
    """Return the plain class behind a `@ray.remote` class, for subclassing.

    Ray refuses to subclass the decorated class (`ActorClassInheritanceException`).
    """
    return actor_class.__ray_metadata__.modified_class.__ray_actor_class__
