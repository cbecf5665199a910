"""Answer verification that cannot hang its caller and says when it does not know.

Importing this package loads the standard library alone: mpmath lives in worker processes.
"""

from .config import VerifierConfig
from .verdict import CORRECT, UNKNOWN, WRONG, Reason, Status, Verdict
from .verifier import Verifier

__all__ = ["CORRECT", "UNKNOWN", "WRONG", "Reason", "Status", "Verdict", "Verifier", "VerifierConfig"]
