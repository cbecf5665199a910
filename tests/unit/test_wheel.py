"""The wheel contains every module of the package and its data files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile


def test_the_wheel_is_complete(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for file in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(root / file, source)
    shutil.copytree(root / "openrlhf_ktae", source / "openrlhf_ktae", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    package = root / "openrlhf_ktae"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(root)) for path in files}
    assert {"openrlhf_ktae/evaluation/benchmarks.yaml", "openrlhf_ktae/cli/train_ppo_ray.py"} <= expected
    assert any(name.startswith("openrlhf_ktae/report/assets/") for name in expected)
    assert expected <= names
    assert not [name for name in names if not name.startswith(("openrlhf_ktae/", "openrlhf_ktae-"))], "nothing else"
    assert "openrlhf_ktae.backend.cpu_patches:activate_in_vllm" in entry_points
