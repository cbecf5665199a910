"""A full disk is reported before a checkpoint is written; a disk that fills during the write is survived."""

from __future__ import annotations

import errno
import subprocess

import pytest
from written import write

from openrlhf_ktae.checkpoint.folder import verify
from openrlhf_ktae.checkpoint.resume import AUTO, decide
from openrlhf_ktae.checkpoint.space import ADAM_BYTES, DiskFull, expected_bytes, require_space
from openrlhf_ktae.checkpoint.write import abandon

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_before_writing_with_the_fixes(small_disk):
    require_space(small_disk, MEGABYTE // 2)
    with pytest.raises(DiskFull) as refusal:
        require_space(small_disk, 5 * 2**30)
    for text in (f"--ckpt.path {small_disk}", "takes 5.0 GiB", "has 1.0 MiB left", "--ckpt.max_num"):
        assert text in str(refusal.value)


def test_a_failed_write_keeps_the_last_complete_checkpoint(small_disk):
    whole = write(small_disk, 2)
    with pytest.raises(OSError) as failure:
        write(small_disk, 4, content="x" * MEGABYTE)
    assert failure.value.errno == errno.ENOSPC
    abandon(small_disk, "global_step4")
    assert decide(AUTO, small_disk).checkpoint.path == whole.path
    verify(write(small_disk, 6).path)


def test_a_disk_that_fills_while_the_manifest_is_written(small_disk):
    """All parts fit, but the manifest does not."""
    whole = write(small_disk, 2)
    (small_disk / "filler").write_bytes(b"\0" * (MEGABYTE - 48 * 1024))
    failures = 0
    for step in range(4, 30, 2):
        try:
            write(small_disk, step, content="x" * 1000)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failures += 1
            abandon(small_disk, f"global_step{step}")
            verify(decide(AUTO, small_disk).checkpoint.path)
    assert failures > 5
    verify(whole.path)


def test_size_is_taken_from_the_last_checkpoint_or_the_parameters(tmp_path):
    assert expected_bytes(tmp_path, 1000, 4, export=False) == 1000 * (ADAM_BYTES + 4)
    assert expected_bytes(tmp_path, 1000, 4, export=True) == 1000 * (ADAM_BYTES + 8)
    assert expected_bytes(tmp_path, None, 4, export=False) == 0
    assert expected_bytes(tmp_path, 1000, 4, export=True, trained=10) == 10 * ADAM_BYTES + 1000 * 8
    size = write(tmp_path, 2, export=True).manifest.bytes
    assert size <= expected_bytes(tmp_path, 1000, 4, export=False) <= 1.1 * size
