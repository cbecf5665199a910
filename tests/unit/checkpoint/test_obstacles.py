"""Folders that cannot be deleted and files that cannot be read do not stop a run."""

from __future__ import annotations

import errno
import math
import os
import shutil

import pytest
from written import write

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.checkpoint import folder as folder_module
from openrlhf_ktae.checkpoint.folder import IncompleteCheckpoint, listed, verify
from openrlhf_ktae.checkpoint.resume import AUTO, decide
from openrlhf_ktae.checkpoint.write import abandon, begin, read_latest, rotate, staging, undeleted


def names(root):
    return sorted(one.path.name for one in listed(root)[0])


def test_deleting_a_linked_checkpoint_removes_only_the_link(tmp_path):
    root, archive = tmp_path / "checkpoints", tmp_path / "archive"
    old = write(root, 2)
    shutil.move(old.path, archive)
    old.path.symlink_to(archive)
    for step in (4, 6):
        write(root, step)
        rotate(root, 1, math.inf)
    assert names(root) == ["global_step6"]
    assert not old.path.is_symlink()
    assert not list(root.glob(".*"))
    verify(archive)


@pytest.fixture
def undeletable(monkeypatch):
    """Folders with "step2" in their path cannot be deleted, like files held open on a network disk."""
    real = shutil.rmtree

    def rmtree(path, *args, **kwargs):
        if "step2" in str(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)


def test_an_undeletable_folder_does_not_block_later_checkpoints(tmp_path, undeletable):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
        rotate(tmp_path, 1, math.inf)
    assert names(tmp_path) == ["global_step8"]
    assert [path.name for path in undeleted(tmp_path)] == [".deleting-global_step2"]
    write(tmp_path, 2)  # a rolled-back run reached the step again
    assert read_latest(tmp_path).name == "global_step2"
    write(tmp_path, 10)
    assert sorted(rotate(tmp_path, 1, math.inf)) == ["global_step2", "global_step8"]
    assert names(tmp_path) == ["global_step10"]
    assert len(undeleted(tmp_path)) == 2
    assert not listed(tmp_path)[1]


def test_an_undeletable_staging_folder_does_not_block_later_checkpoints(tmp_path, undeletable):
    half = staging(tmp_path, "global_step2")
    (half / "_actor").mkdir(parents=True)
    (half / "_actor" / "torn.pt").write_text("half")
    assert list(begin(tmp_path, "global_step2").iterdir()) == []
    assert len(undeleted(tmp_path)) == 1
    abandon(tmp_path, "global_step2")
    assert write(tmp_path, 4).path == read_latest(tmp_path)


def test_a_checkpoint_is_written_even_if_the_replaced_one_cannot_be_deleted(tmp_path, undeletable):
    write(tmp_path, 2)
    for content in ("again", "and again"):
        checkpoint = write(tmp_path, 2, content=content)
        assert read_latest(tmp_path) == checkpoint.path
        verify(checkpoint.path)
    assert decide(AUTO, tmp_path).checkpoint.manifest.sequence == checkpoint.manifest.sequence


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")])
@pytest.mark.parametrize("what", ["digests", "files_below", "read_text"])
def test_an_unreadable_checkpoint_is_skipped_for_an_older_complete_one(tmp_path, monkeypatch, error, what):
    whole, bad = write(tmp_path, 2), write(tmp_path, 4)
    real = getattr(folder_module, what)

    def unreadable(paths, *more):
        paths = [paths] if isinstance(paths, os.PathLike) else list(paths)
        if any("step4" in str(path) for path in paths):
            raise error
        return real(paths if what == "digests" else paths[0], *more)

    monkeypatch.setattr(folder_module, what, unreadable)
    decision = decide(AUTO, tmp_path)
    assert decision.checkpoint.path == whole.path
    assert f"skipped {bad.path.name}: " in decision.lines[0]
    assert error.strerror in decision.lines[0]
    with pytest.raises(Refusal, match=error.strerror):
        decide(str(bad.path), tmp_path)


@pytest.mark.parametrize("name", ["global_step4/manifest.json", "latest", "anew"])
def test_reading_a_pipe_does_not_block(tmp_path, name):
    whole = write(tmp_path, 2)
    write(tmp_path, 4)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert decide(AUTO, tmp_path).checkpoint.step == (2 if "manifest" in name else 4)
    if "manifest" in name:
        with pytest.raises(IncompleteCheckpoint, match="not a regular file"):
            verify(tmp_path / "global_step4")
    read_latest(tmp_path)
    assert whole.path.exists()
