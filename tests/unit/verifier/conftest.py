"""One verifier shared by tests that only need verdicts, since starting workers takes a second."""

from __future__ import annotations

import pytest

from openrlhf_ktae.verifier import Verifier


@pytest.fixture(scope="session")
def verifier():
    with Verifier(workers=2) as shared:
        yield shared
