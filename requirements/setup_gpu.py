"""`make setup-gpu`: install the GPU builds in a separate environment, step by step; a failed step says what to try.

Steps can be rerun: installed packages are kept. flash-attn comes last, because it may take hours and runs work
without it (docs/gpu.md). Variables, all optional:

  FLASH_ATTN_WHEEL       URL or file of a wheel for this torch, CUDA and Python, instead of compiling
  FLASH_ATTN=no          skips flash-attn
  FLASH_ATTN_CUDA_ARCHS  architectures to compile for, 90 (H100, H200) unless given; "80;90" adds A100
  NVCC_THREADS           threads of each compiler, 1 unless given
  MAX_JOBS               compilers at a time, from cores and free memory unless given
  PREBUILD=1             compiles DeepSpeed's optimizers now, so that nodes need no nvcc
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements/gpu.txt"
PYTHONS = ((3, 11), (3, 12))
FLASH_ATTN = "flash-attn==2.8.3"
ARCHITECTURES = "90"
GIB = 2**30
JOB_GIB = 5  # memory of one nvcc of one thread with flash-attn's largest kernels
CORE_HOURS = 3  # to compile flash-attn for one architecture
DISK_GIB = 10  # 9 installed, plus pip's temporary files
FIRST = ("torch", "setuptools", "wheel", "packaging", "ninja", "psutil", "numpy")  # needed to build the others
WAYS = (  # output of a failed command -> what to try
    ("No space left on device", "make room: 9 GB for the environment and as much for pip's cache (PIP_NO_CACHE_DIR=1)"),
    ("Killed|signal 9|out of memory|cc1plus: fatal", "memory ran out: MAX_JOBS=1"),
    ("use_ninja", "the setuptools of requirements/gpu.txt is missing: remove the environment and start over"),
    ("nvcc was not found|CUDA_HOME|No such file or directory: '.*nvcc'", "name a CUDA toolkit 13.0 in CUDA_HOME"),
    (r"detected CUDA version \(|mismatches the version", "name a CUDA toolkit 13.0, as torch has, in CUDA_HOME"),
    (
        r"fatal error: \w+\.h: No such file",
        "the CUDA toolkit lacks headers: install all of it, or NVIDIA's devel image",
    ),
    ("fatal error: Python.h", "install the headers of Python (python3-dev)"),
    ("command '(gcc|g\\+\\+|c\\+\\+|cc)'|gcc: not found", "install a C++ compiler (gcc, g++)"),
    ("undefined symbol", "the wheel was built for another torch: leave FLASH_ATTN_WHEEL out, or give the right one"),
    ("is not a supported wheel on this platform", "give a wheel for this Python and platform"),
    (
        "No matching distribution|Could not find a version|ResolutionImpossible",
        "pip's index lacks it or does not respond: check `pip config list` and the network",
    ),
    ("ConnectionError|Read timed out|ReadTimeoutError|Temporary failure in name", "the network failed: run it again"),
    ("ensurepip is not available", "install python3-venv"),
    ("Permission denied", "choose a writable place: VENV=PATH"),
)
WITHOUT = "FLASH_ATTN=no finishes without it: everything else is installed, and runs work without packing"


@dataclass(frozen=True)
class Step:
    """One command, and advice for failures that its output does not explain."""

    name: str
    command: list[str]
    otherwise: str = "run it again: installed packages are kept"
    variables: Mapping[str, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Install; return 0, or 1 after printing the failed step, the reason and what to try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args(argv)
    try:
        steps = plan(options.venv, os.environ)
        if options.dry_run:
            for step in steps:
                print(" ".join([*(f"{name}={value}" for name, value in step.variables.items()), *step.command]))
            return 0
        refuse_no_room(options.venv)
        for number, step in enumerate(steps, 1):
            print(f"setup-gpu: step {number} of {len(steps)}, {step.name}", flush=True)
            run(step)
    except Failed as error:
        print(f"error: setup-gpu: {error}", file=sys.stderr)
        return 1
    print(f"setup-gpu: done. `. {options.venv}/bin/activate`; docs/gpu.md says what else a GPU machine needs")
    return 0


class Failed(RuntimeError):
    """A step failed."""


def plan(venv: Path, given: Mapping[str, str], version: tuple[int, int] = sys.version_info[:2]) -> list[Step]:
    """Return the steps of an installation into `venv`, with the user's variables `given`.

    Raises:
        Failed: the lock has no pins for this Python.
    """
    if version not in PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise Failed(f"Python {version[0]}.{version[1]}: {LOCK.name} has pins for {known} only; give PYTHON=python3.12")
    python = str(venv / "bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    beside = [*pip, "--no-deps", "--no-build-isolation"]
    steps = [
        Step("an environment", [sys.executable, "-m", "venv", str(venv)], "remove it and start over"),
        Step("torch and build dependencies", [*pip, "-c", str(LOCK), *FIRST]),
        Step(f"everything else of requirements/{LOCK.name}", [*beside, "-r", str(LOCK)]),
        Step("this package", [*beside, "-e", str(ROOT)]),
        Step("compiled loops", [python, "-c", "from openrlhf_ktae.ktae import warm_up; warm_up()"]),
    ]
    architectures = given.get("FLASH_ATTN_CUDA_ARCHS") or ARCHITECTURES
    if given.get("PREBUILD", "") not in ("", "0"):
        variables = {
            "DS_BUILD_FUSED_ADAM": "1",
            "DS_BUILD_CPU_ADAM": "1",
            "DS_ACCELERATOR": "cuda",  # no GPU is needed to build
            "TORCH_CUDA_ARCH_LIST": given.get("TORCH_CUDA_ARCH_LIST") or dotted(architectures),
        }
        again = [*beside, "--no-cache-dir", "--force-reinstall", pinned("deepspeed")]
        steps.append(
            Step("DeepSpeed's optimizers, compiled", again, "leave PREBUILD out; each node needs nvcc", variables)
        )
    return [*steps, *flash_attn(python, beside, given, architectures)]


def flash_attn(python: str, beside: list[str], given: Mapping[str, str], architectures: str) -> list[Step]:
    """Return the steps for flash-attn: none, a wheel, or compiling with as many jobs as memory allows."""
    if given.get("FLASH_ATTN") == "no":
        return []
    check = Step("flash-attn is imported", [python, "-c", "import flash_attn"], WITHOUT)
    if wheel := given.get("FLASH_ATTN_WHEEL"):
        return [Step("flash-attn from a wheel", [*beside, "--force-reinstall", wheel], WITHOUT), check]
    if given.get("FLASH_ATTENTION_SKIP_CUDA_BUILD") == "TRUE":
        return [Step("flash-attn without its kernels", [*beside, FLASH_ATTN], WITHOUT)]
    jobs = int(given.get("MAX_JOBS") or jobs_for(cores(), free_memory()))
    variables = {
        "FLASH_ATTN_CUDA_ARCHS": architectures,
        "NVCC_THREADS": given.get("NVCC_THREADS") or "1",
        "MAX_JOBS": str(jobs),
    }
    hours = CORE_HOURS * len(architectures.split(";")) / min(jobs, cores())
    name = (
        f"flash-attn, compiled for {architectures}, {jobs} at a time: about {hours:.1f} hours unless a wheel is found"
    )
    return [Step(name, [*beside, FLASH_ATTN], f"give FLASH_ATTN_WHEEL, or {WITHOUT}", variables), check]


def jobs_for(cores: int, free: int) -> int:
    """Return how many compilers the cores and free memory (bytes) allow."""
    return max(1, min(cores, free // (JOB_GIB * GIB)))


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory(proc: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the free memory of this machine in bytes, or this container's limit if lower."""
    free = int(re.search(r"MemAvailable: *(\d+) kB", proc.read_text())[1]) * 1024
    bound = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(bound)) if bound.isdigit() else free


def dotted(architectures: str) -> str:
    """Convert flash-attn's names of architectures to torch's: `80;90` -> `8.0;9.0`."""
    return ";".join(f"{one[:-1]}.{one[-1]}" for one in architectures.split(";"))


def pinned(package: str) -> str:
    """Return the line of the lock for a package."""
    found = re.search(rf"^{package}={{2,3}}\S+$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise Failed(f"requirements/{LOCK.name} does not pin {package}; make it again with `make lock-gpu`")
    return found[0]


def refuse_no_room(venv: Path) -> None:
    """Raise `Failed` if the disk is too small for a new environment."""
    nearest = next(one for one in (venv.absolute(), *venv.absolute().parents) if one.exists())
    free = shutil.disk_usage(nearest).free / GIB
    if free < DISK_GIB and not (venv / "bin/vllm").exists():
        raise Failed(
            f"{nearest} has {free:.1f} GB free but {DISK_GIB} are needed; make room, or give VENV=PATH elsewhere"
        )


def run(step: Step) -> None:
    """Run a step and show its output.

    Raises:
        Failed: its exit code is not 0.
    """
    said: deque[str] = deque(maxlen=400)
    environment = {**os.environ, **step.variables}
    with subprocess.Popen(
        step.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            said.append(line)
            print(line, end="", flush=True)
    if process.returncode:
        raise Failed(f"step '{step.name}' failed{reason(process.returncode, ''.join(said))}. Try: {way(step, said)}")


def reason(code: int, said: str) -> str:
    """Return the last line with an error, if possible not pip's summary, which follows the actual error."""
    errors = [line.strip() for line in said.splitlines() if re.search(r"(?i)error\b|Killed", line)]
    told = [line for line in errors if not re.search(r"subprocess-exited|metadata-generation|Failed to build", line)]
    return f" with exit code {code}: {(told or errors)[-1][:300]}" if errors else f" with exit code {code}"


def way(step: Step, said: deque[str]) -> str:
    """Return advice for this output."""
    text = "".join(said)
    found = [advice for pattern, advice in WAYS if re.search(pattern, text)]
    return "; ".join([*found[:2], step.otherwise])


if __name__ == "__main__":
    sys.exit(main())
