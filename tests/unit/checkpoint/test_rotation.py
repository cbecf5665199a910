"""Rotation deletes the oldest checkpoint, never the newest or the best; exports go with their checkpoint."""

from __future__ import annotations

import math

import pytest
from written import write

from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.checkpoint.write import read_latest, rotate, supersede_all


def names(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_the_newest_are_kept(tmp_path):
    for step in range(2, 14, 2):
        write(tmp_path, step)
        rotate(tmp_path, 3, math.inf)
    assert names(tmp_path) == ["global_step10", "global_step12", "global_step8"]


def test_a_checkpoint_of_an_earlier_step_can_be_the_newest(tmp_path):
    for step in (10, 12, 4):
        write(tmp_path, step)
    rotate(tmp_path, 1, math.inf)
    assert names(tmp_path) == ["global_step4"]
    assert read_latest(tmp_path).name == "global_step4"


def test_the_best_is_kept_and_does_not_count(tmp_path):
    write(tmp_path, 2, best=True)
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
        rotate(tmp_path, 1, math.inf)
    assert names(tmp_path) == ["best_global_step2", "global_step8"]


def test_a_new_best_replaces_the_old_one(tmp_path):
    for step in (2, 4):
        write(tmp_path, step, best=True)
        write(tmp_path, step)
        rotate(tmp_path, 2, math.inf)
    assert names(tmp_path) == ["best_global_step4", "global_step2", "global_step4"]


@pytest.mark.parametrize("keep", [0, -1])
def test_the_newest_is_never_deleted(tmp_path, keep):
    write(tmp_path, 2)
    write(tmp_path, 4)
    rotate(tmp_path, keep, 0)
    assert names(tmp_path) == ["global_step4"]


def test_the_oldest_are_deleted_until_the_byte_limit_is_met(tmp_path):
    for step in (2, 4, 6, 8):
        write(tmp_path, step, export=True)
    size = listed(tmp_path)[0][0].manifest.bytes
    assert rotate(tmp_path, 99, 2.5 * size) == ["global_step2", "global_step4"]
    assert rotate(tmp_path, 99, 1) == ["global_step6"]
    assert names(tmp_path) == ["global_step8"]


def test_exports_are_counted_and_go_with_their_checkpoint(tmp_path):
    for step in (2, 4, 6):
        write(tmp_path, step, export=True)
        rotate(tmp_path, 2, math.inf)
    assert [path.name for path in sorted(tmp_path.rglob("*_hf"))] == ["global_step4_hf", "global_step6_hf"]
    assert listed(tmp_path)[0][0].manifest.bytes > 7000


def test_other_folders_are_not_deleted(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    write(tmp_path, 4)
    rotate(tmp_path, 1, math.inf)
    assert names(tmp_path) == ["global_step4", "notes"]


def test_the_best_of_a_superseded_run_is_kept(tmp_path):
    """A run from scratch starts a best of its own, even if an earlier run in the folder was better."""
    write(tmp_path, 20, best=True)
    write(tmp_path, 20)
    supersede_all(tmp_path)
    for step in (2, 4):
        write(tmp_path, step, best=True)
        write(tmp_path, step)
        rotate(tmp_path, 1, math.inf)
    assert names(tmp_path) == ["best_global_step20", "best_global_step4", "global_step4"]


def test_superseded_checkpoints_are_deleted_first(tmp_path):
    from openrlhf_ktae.checkpoint.write import supersede_after

    first = write(tmp_path, 10)
    write(tmp_path, 20)
    write(tmp_path, 30)
    supersede_after(tmp_path, first.manifest.sequence)
    write(tmp_path, 12)
    rotate(tmp_path, 2, math.inf)
    assert names(tmp_path) == ["global_step10", "global_step12"]
