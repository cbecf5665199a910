"""Each diff in `patches/` applies to the installed host, alone and after all others, and the result is valid Python."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "patches"
PATCHES = sorted(FOLDER.glob("*.patch"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    installed = Path(importlib.util.find_spec("openrlhf").origin).parent
    copy = tmp_path_factory.mktemp("host")
    shutil.copytree(installed, copy / "openrlhf", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def apply(patch, directory, *options):
    command = ["patch", "--strip=1", "--fuzz=0", "--forward", f"--directory={directory}", f"--input={patch}", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def patch_is_installed():
    if shutil.which("patch") is None:
        pytest.skip("the command `patch` is not installed")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_patch_applies_to_the_pinned_release(patch, pristine):
    done = apply(patch, pristine, "--dry-run")
    assert done.returncode == 0, done.stdout
    assert "offset" not in done.stdout, "the diff was made for another release"


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_has_no_context_and_is_small(patch):
    lines = patch.read_text().splitlines()
    hunks = [line for line in lines if not line.startswith(("---", "+++", "@@"))][1:]
    assert all(line.startswith(("+", "-")) for line in hunks)
    assert sum(line.startswith("-") for line in hunks) <= 12


def test_patch_does_not_apply_twice(pristine, tmp_path):
    """Counterfactual: a diff does not apply to changed code."""
    shutil.copytree(pristine / "openrlhf", tmp_path / "openrlhf")
    patch = FOLDER / "keep_group.patch"
    assert apply(patch, tmp_path).returncode == 0
    assert apply(patch, tmp_path, "--dry-run").returncode != 0


def test_all_patches_together_leave_valid_python(pristine, tmp_path):
    shutil.copytree(pristine / "openrlhf", tmp_path / "openrlhf")
    for patch in PATCHES:
        done = apply(patch, tmp_path)
        assert done.returncode == 0, (patch.name, done.stdout)
    changed = [path for path in tmp_path.rglob("*.py") if path.read_text() != _before(path, tmp_path, pristine)]
    assert len(changed) >= 9
    for path in changed:
        compile(path.read_text(), str(path), "exec")


def _before(path, tmp_path, pristine):
    return (pristine / path.relative_to(tmp_path)).read_text()


def test_the_readme_names_every_diff_and_only_those():
    named = {line.split("`")[1] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")}
    assert named == {patch.name for patch in PATCHES}
