"""Answer verification that cannot hang its caller, with a third verdict, unknown, when it cannot decide.

Importing this package loads only the standard library; mpmath is imported in worker processes.
"""

from .config import VerifierConfig
from .verdict import CORRECT, UNKNOWN, WRONG, Reason, Status, Verdict
from .verifier import Verifier

__all__ = ["CORRECT", "UNKNOWN", "WRONG", "Reason", "Status", "Verdict", "Verifier", "VerifierConfig"]
