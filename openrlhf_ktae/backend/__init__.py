"""Everything that differs between `cuda` and `cpu`.

The rest of the package gets a `Backend` here and names no device itself.
"""

from openrlhf_ktae.backend.base import BACKENDS, Backend
from openrlhf_ktae.backend.choice import resolve

__all__ = ["BACKENDS", "Backend", "resolve"]
