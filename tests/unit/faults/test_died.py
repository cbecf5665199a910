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


def wrapped(cause):
    """What Ray raises in a process that called one in which `cause` was raised."""
    from ray.exceptions import RayTaskError

    return RayTaskError("fit", f"a stack\n{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def a_quotation():
    return wrapped(ValueError("the engine said EngineDeadError, ActorDiedError and Connection closed by peer"))


def a_dead_core():
    from vllm.v1.engine.exceptions import EngineDeadError

    return wrapped(EngineDeadError())


def a_dead_actor_of_another_process():
    from ray.exceptions import ActorDiedError

    return wrapped(ActorDiedError())


def gloo():
    return wrapped(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1234"))


def a_store_that_waits():
    from torch.distributed import DistStoreError

    return wrapped(DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."))


def a_server_of_rewards():
    return wrapped(ConnectionResetError("Connection reset by peer"))


def lost_engines():
    from openrlhf_ktae.faults.engines import EnginesLost

    return wrapped(EnginesLost("an engine does not come back"))


def of_a_dead_core():
    try:
        raise ValueError("no output") from a_dead_core()
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (low_on_memory, (True, False)),
        (a_shape, (False, False)),
        (a_quotation, (False, False)),
        (a_dead_core, (True, True)),
        (a_dead_actor_of_another_process, (True, True)),
        (gloo, (True, False)),
        (a_store_that_waits, (True, False)),
        (a_server_of_rewards, (False, False)),
        (lost_engines, (True, False)),
        (of_a_dead_core, (True, True)),
    ],
)
def test_types_of_errors_tell_what_died(error, expected, host):
    """The call that fails may be another process's, so that the error is a task's and not an actor's."""
    from openrlhf_ktae.faults.deaths import died
    from openrlhf_ktae.faults.engines import engine_died

    assert (died(error()), engine_died(error())) == expected


def test_a_death_is_told_without_the_stacks_of_those_who_waited(host):
    from openrlhf_ktae.faults.deaths import in_one_line
    from openrlhf_ktae.faults.engines import EnginesLost

    assert in_one_line(wrapped(wrapped(EnginesLost("an engine\n is lost")))) == "an engine is lost"
    assert in_one_line(a_dead_actor_of_another_process()).startswith("The actor died")
    assert in_one_line(of_a_dead_core()) == "no output"
