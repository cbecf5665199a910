"""Messages begin with the innermost cause; Python errors are distinguished from dead processes."""

from __future__ import annotations

import os
import time

import pytest
from marks import SLOW

from openrlhf_ktae.launch.launch import cause_in_logs
from openrlhf_ktae.processes.deaths import died, failed_to_start, innermost

pytestmark = SLOW


@pytest.fixture(scope="module")
def error_of(ray_with_workers):
    """Return a failing actor's error as Ray raises it in the driver."""
    ray = ray_with_workers

    class Odd(Exception):
        def __reduce__(self):
            raise TypeError("cannot travel")

    @ray.remote(num_cpus=0)
    class Actor:
        def __init__(self, how):
            if how == "raises":
                raise OverflowError("Python int too large to convert to C long")
            if how == "lines":
                raise ValueError("first line\nHint: second line")
            if how == "inner":
                ray.get(Actor.remote("raises").go.remote())
            if how == "from":
                try:
                    raise KeyError("the key")
                except KeyError as error:
                    raise RuntimeError("outer") from error
            if how == "exits":
                os._exit(3)
            if how == "inner exits":
                ray.get(Actor.remote("exits").go.remote())

        def go(self, how=""):
            if how == "dies":
                os._exit(9)
            if how == "raises":
                raise LookupError("no such thing")
            if how == "odd":
                raise Odd("as it is")

    def call(made, going=""):
        with pytest.raises(Exception) as error:
            ray.get(Actor.remote(made).go.remote(going))
        return error.value

    return call


@pytest.mark.parametrize(
    ("made", "going", "begins", "death"),
    [
        ("raises", "", "OverflowError: Python int too large to convert to C long", False),
        ("inner", "", "OverflowError: Python int too large to convert to C long", False),
        ("lines", "", "ValueError: first line Hint: second line", False),
        ("from", "", "RuntimeError: outer", False),
        ("", "raises", "LookupError: no such thing", False),
        ("exits", "", "the process of Actor ended (SYSTEM_ERROR Worker exit detail: Worker", True),
        ("inner exits", "", "the process of Actor ended (SYSTEM_ERROR Worker exit detail: Worker", True),
        ("", "dies", "the process of Actor ended (SYSTEM_ERROR Worker exit detail: Worker", True),
    ],
)
def test_the_reason_comes_first(made, going, begins, death, error_of):
    error = error_of(made, going)
    assert innermost(error).startswith(begins)
    assert "\n" not in innermost(error)
    assert (died(error) and not failed_to_start(error)) == death


def test_a_cores_log_gives_the_reason(tmp_path):
    line = "(EngineCore pid=7) ERROR 11-28 20:00:00 [core.py:100] "
    (tmp_path / "worker-a.out").write_text("ValueError: of somebody else\n")
    assert cause_in_logs(tmp_path) == ""
    (tmp_path / "worker-b.err").write_text(f"{line}Traceback\n{line}ValueError: no free memory blocks\n")
    time.sleep(0.01)
    (tmp_path / "worker-c.err").write_text(f"{line}RuntimeError: Engine core initialization failed. See root cause\n")
    assert cause_in_logs(tmp_path) == "ValueError: no free memory blocks"


def test_unreadable_data_are_distinguished_from_other_errors(ray_with_workers, tmp_path):
    """Integers above 64 bits, which fail while the trainer's actor is created."""
    from types import SimpleNamespace

    from openrlhf_ktae.launch.launch import DATA

    table = tmp_path / "train.csv"
    table.write_text(f"input,label\na,{2**100}\nb,{2**100 + 1}\n")

    @ray_with_workers.remote(num_cpus=0)
    class Trainer:
        def __init__(self, path):
            from openrlhf.datasets.utils import blending_datasets

            strategy = SimpleNamespace(print=print, is_rank_0=lambda: True, args=SimpleNamespace(use_ms=False))
            blending_datasets(path, None, strategy)

        def go(self):
            pass

    with pytest.raises(Exception) as error:
        ray_with_workers.get(Trainer.remote(str(table)).go.remote())
    assert failed_to_start(error.value)
    assert DATA.search(str(error.value))
    assert innermost(error.value).split(":")[0].endswith(("Error", "Exception", "Invalid"))
