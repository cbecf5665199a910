"""Errors that mean that a process of the run is gone."""

from __future__ import annotations

import pytest


def low_on_memory():
    from ray.exceptions import OutOfMemoryError, RayTaskError

    cause = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory was 22.40GB / 23.54GB"
    )
    return RayTaskError("init_model", f"a stack\nOutOfMemoryError: {cause}", cause).as_instanceof_cause()


def a_shape():
    from ray.exceptions import RayTaskError

    cause = ValueError("shapes do not match")
    return RayTaskError("fit", f"a stack\nValueError: {cause}", cause).as_instanceof_cause()


@pytest.mark.parametrize(("error", "expected"), [(low_on_memory, True), (a_shape, False)])
def test_a_process_that_ray_killed_for_memory_is_gone_whoever_called_it(error, expected):
    """The call that fails may be another process's, so that the error is a task's and not an actor's."""
    from openrlhf_ktae.faults.deaths import died

    assert died(error()) is expected
