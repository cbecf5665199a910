"""Whenever its writer dies, a checkpoint is complete or absent, and `latest` names a complete one."""

from __future__ import annotations

import math
import os
import shutil
import threading

import pytest
from written import dies_while_writing, write

from openrlhf_ktae.checkpoint import write as module
from openrlhf_ktae.checkpoint.folder import IncompleteCheckpoint, folders, listed, verify
from openrlhf_ktae.checkpoint.resume import AUTO, decide
from openrlhf_ktae.checkpoint.write import FilesNotVisible, begin, commit, read_latest, recover, rotate, staging

NEVER_DIES = 10**9
MODELS = {2: "weights 2", 4: "weights 4", 6: "again 6"}


def content(checkpoint):
    return next(checkpoint.path.glob("_actor/*/model.pt")).read_text()


def check_whole(root, allowed):
    """Check the checkpoint that a run resumes from after the writer's death; return its step."""
    chosen = decide(AUTO, root).checkpoint
    assert chosen is not None
    assert content(chosen) in allowed[chosen.step]
    latest = read_latest(root)
    if latest is not None:
        verify(latest)
    elif (root / "latest").exists():  # it was set aside: recovery restores it, or the new one has its name
        recover(root)
        verify(read_latest(root))
    return chosen.step


def staged(root, **files):
    folder = begin(root, "global_step2")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_checkpoint_without_a_ranks_files_is_not_committed(tmp_path, monkeypatch):
    """Without a shared file system each node's ranks see only their own parts."""
    monkeypatch.setattr(module, "SEEN_SECONDS", 0.2)
    staged(tmp_path, rank0="abc", rank1="de")
    seen = [("10.0.0.1 (one)", {"rank0": 3}), ("10.0.0.2 (two)", {"rank1": 2, "rank2": 2}), ("10.0.0.3", {"rank1": 9})]
    with pytest.raises(FilesNotVisible) as error:
        commit(tmp_path, "global_step2", 2, {}, seen)
    text = str(error.value)
    assert text.startswith("the trainer does not see 2 of 3 files that ranks on 10.0.0.2 (two), 10.0.0.3 see")
    assert f"such as rank1; --ckpt.path {tmp_path} must be on a file system that all nodes share" in text
    assert not listed(tmp_path)[0]
    assert not (tmp_path / "latest").exists()


def test_a_network_file_system_may_show_files_late_or_with_old_sizes(tmp_path):
    folder = staged(tmp_path, rank0="abc")
    late = threading.Timer(0.7, lambda: (folder / "rank1").write_text("defg"))
    late.start()
    seen = [("one", {"rank0": 3, "rank1": 1}), ("two", {"rank1": 4})]  # rank 0 saw rank 1's file half written
    checkpoint = commit(tmp_path, "global_step2", 2, {}, seen)
    late.join()
    assert {name: entry["bytes"] for name, entry in checkpoint.manifest.files.items()} == {"rank0": 3, "rank1": 4}


def test_a_kill_at_any_operation_of_a_write_keeps_earlier_checkpoints_complete(tmp_path):
    """Two checkpoints exist; the third is being written, then the first is rotated out."""
    before = tmp_path / "before"
    write(before, 2)
    write(before, 4)
    operations = dies_while_writing(copy(before, tmp_path / "whole"), NEVER_DIES, 6)
    assert operations > 40
    found = []
    for moment in range(1, operations + 1):
        root = copy(before, tmp_path / "killed")
        assert dies_while_writing(root, moment, 6) is None
        found.append(check_whole(root, {4: {"weights 4"}, 6: {"again 6"}}))
        write(root, 8)  # the next run can write
        assert decide(AUTO, root).checkpoint.step == 8
        rotate(root, 2, math.inf)
        assert not list(root.glob(".*")), "no temporary folder may be left"
        assert len(folders(root)) == 2, "a half-deleted checkpoint is left"
        assert not listed(root)[1]
    assert found == sorted(found), "a later kill must not lose it"
    assert {4, 6} == set(found)


def test_a_kill_at_any_operation_of_a_replacement_leaves_one_complete_checkpoint(tmp_path):
    """A run that resumed from step 2 reaches step 4 again."""
    before = tmp_path / "before"
    write(before, 2)
    write(before, 4)
    operations = dies_while_writing(copy(before, tmp_path / "whole"), NEVER_DIES, 4)
    found = set()
    for moment in range(1, operations + 1):
        root = copy(before, tmp_path / "killed")
        assert dies_while_writing(root, moment, 4) is None
        chosen = decide(AUTO, root).checkpoint
        assert chosen.step == 4
        found.add(content(chosen))
        verify(read_latest(root))
    assert found == {"weights 4", "again 4"}


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)


def test_files_are_flushed_before_the_rename(tmp_path, monkeypatch):
    """Checks the order of calls: after a machine crash no name may exist without its content."""
    calls = []
    names = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace}
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))), names["fsync"](fd))
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append(("rename", str(b))), names["rename"](a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", str(b))), names["replace"](a, b)))
    checkpoint = write(tmp_path, 2)
    renamed = calls.index(("rename", str(checkpoint.path)))
    synced = {path for what, path in calls[:renamed] if what == "fsync"}
    folder = staging(tmp_path, "global_step2")
    for name in (*checkpoint.manifest.files, "manifest.json", "_actor", "_actor/global_step2", "."):
        assert str((folder / name).resolve()) in synced, name
    named = calls.index(("replace", str(tmp_path / "latest")))
    assert ("fsync", str(tmp_path)) in calls[renamed:named], "the rename must be synced before `latest` names it"


def test_damaged_files_are_named(tmp_path):
    checkpoint = write(tmp_path, 2)
    model = next(checkpoint.path.glob("_actor/*/model.pt"))
    name = str(model.relative_to(checkpoint.path))
    whole = model.read_text()
    for damage, message in (
        (lambda: model.write_text(whole[:-1]), f"{name} has 8 bytes instead of 9"),
        (lambda: model.write_text(whole[::-1]), f"{name} changed"),
        (model.unlink, f"{name} is missing"),
    ):
        damage()
        with pytest.raises(IncompleteCheckpoint, match=message):
            verify(checkpoint.path)
        model.write_text(whole)
    verify(checkpoint.path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"version": 2}', '{"version": 1, "files": []}', "\x00\xff", "[" * 100_000),
        '{"version": 1, "tag": "t", "step": 1, "sequence": 1, "about": {}, "files": {"a": {"bytes": "1"}}}',
        '{"version": 1, "tag": "t", "step": 1, "sequence": 1, "about": {}, "files": {}}',
    ],
)
def test_an_invalid_manifest_is_reported(tmp_path, text):
    checkpoint = write(tmp_path, 2)
    (checkpoint.path / "manifest.json").write_text(text)
    with pytest.raises(IncompleteCheckpoint, match=r"manifest\.json"):
        verify(checkpoint.path)
    assert listed(tmp_path)[0] == []


def test_the_digest_of_a_large_file_covers_start_middle_and_end(tmp_path):
    from openrlhf_ktae.checkpoint.files import READ_IN_FULL, digest

    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(3 * READ_IN_FULL)
    before = digest(path)
    for place in (0, READ_IN_FULL * 3 - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        changed = digest(path)
        assert changed != before
        before = changed
    with path.open("r+b") as file:
        file.truncate(3 * READ_IN_FULL - 1)
    assert digest(path) != before


def test_stale_staged_files_are_not_in_the_next_checkpoint(tmp_path):
    (staging(tmp_path, "global_step2") / "_actor").mkdir(parents=True)
    (staging(tmp_path, "global_step2") / "_actor" / "torn.pt").write_text("half")
    assert list(begin(tmp_path, "global_step2").iterdir()) == []
