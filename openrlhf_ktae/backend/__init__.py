"""What differs between `cuda` and `cpu`, and nothing else.

The rest of the package asks this one for a `Backend` and never names a device.
"""

from openrlhf_ktae.backend.base import BACKENDS, Backend, BackendUnavailable
from openrlhf_ktae.backend.choice import resolve

__all__ = ["BACKENDS", "Backend", "BackendUnavailable", "resolve"]
