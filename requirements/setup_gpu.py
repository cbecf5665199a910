"""`make setup-gpu`: install the GPU builds in a separate environment, step by step; a failed step says what to try.

Steps can be rerun: installed packages are kept. flash-attn comes last, because it may take hours and runs work
without it (docs/gpu.md). Variables, all optional:

  FLASH_ATTN_WHEEL       URL or file of a wheel for this torch, CUDA and Python, instead of compiling
  FLASH_ATTN=no          skips flash-attn (also 0, false)
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
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Mapping
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
    ("Killed|SIGKILL|signal 9|exit code 137|out of memory|cc1plus: fatal", "memory ran out: MAX_JOBS=1"),
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
    (
        "Permission denied|Read-only file system|Not a directory|quota exceeded",
        "choose a writable place with room: VENV=PATH",
    ),
    (
        "No module named 'flash_attn_2_cuda'",
        "it was installed without its kernels, perhaps from pip's cache: `pip uninstall flash-attn`, "
        "`pip cache remove flash_attn`, and run it again",
    ),
    (r"HTTP error 4\d\d", "check the address, such as FLASH_ATTN_WHEEL"),
    (r"lib\w+\.so[.\d]*: cannot open shared object", "the wheel was built for another CUDA: give one for 13.0"),
    (r"GLIBC\w*_[\d.]+' not found", "the wheel needs a newer system: leave FLASH_ATTN_WHEEL out, which compiles it"),
    ("unsupported GNU version", "nvcc does not know this g++: name an older one in CC and CXX"),
)
OFF = ("", "0", "no", "false", "off")
ON = ("1", "yes", "true", "on")
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
        return 2 if isinstance(error, Refused) else 1
    except KeyboardInterrupt:
        print("setup-gpu: interrupted; run it again: installed packages are kept", file=sys.stderr)
        return 130
    print(f"setup-gpu: done. `. {options.venv}/bin/activate`; docs/gpu.md says what else a GPU machine needs")
    return 0


class Failed(RuntimeError):
    """A step failed."""


class Refused(Failed):
    """Nothing was installed, because of a variable, this Python or the disk."""


def plan(venv: Path, given: Mapping[str, str], version: tuple[int, int] = sys.version_info[:2]) -> list[Step]:
    """Return the steps of an installation into `venv`, with the user's variables `given`.

    Raises:
        Refused: the lock has no pins for this Python, or a variable has a value that cannot work.
    """
    refuse_bad_values(given)
    if version not in PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise Refused(
            f"Python {version[0]}.{version[1]}: {LOCK.name} has pins for {known} only; give PYTHON=python3.12"
        )
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
    if given.get("PREBUILD", "").lower() not in OFF:
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
    if "FLASH_ATTN" in given and given["FLASH_ATTN"].lower() in OFF[1:]:
        return []
    check = Step("flash-attn is imported", [python, "-c", "import flash_attn"], WITHOUT)
    if wheel := given.get("FLASH_ATTN_WHEEL"):
        return [Step("flash-attn from a wheel", [*beside, "--force-reinstall", wheel], WITHOUT), check]
    if given.get("FLASH_ATTENTION_SKIP_CUDA_BUILD") == "TRUE":
        # A later installation would take a wheel without kernels from pip's cache.
        return [Step("flash-attn without its kernels", [*beside, "--no-cache-dir", FLASH_ATTN], WITHOUT)]
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


def refuse_bad_values(given: Mapping[str, str]) -> None:
    """Raise `Refused` for a value of a variable that would fail, or compile the wrong thing, hours later."""
    for name in ("MAX_JOBS", "NVCC_THREADS"):
        if (value := given.get(name)) and not re.fullmatch("[1-9][0-9]*", value):
            raise Refused(f"{name}={value}: give a whole number above 0, or leave it out")
    architectures = given.get("FLASH_ATTN_CUDA_ARCHS") or ARCHITECTURES
    if not re.fullmatch(r"\d{2,3}(;\d{2,3})*", architectures):
        raise Refused(f"FLASH_ATTN_CUDA_ARCHS={architectures}: give numbers with ; between them, such as 90 or '80;90'")
    for name in ("FLASH_ATTN", "PREBUILD"):
        if (value := given.get(name, "")).lower() not in OFF + ON:
            raise Refused(f"{name}={value}: give yes or no, or leave it out")
    wheel = given.get("FLASH_ATTN_WHEEL") or ""
    if wheel and "://" not in wheel and not (wheel.endswith(".whl") and Path(wheel).is_file()):
        raise Refused(f"FLASH_ATTN_WHEEL={wheel}: no such wheel; give a URL or a file that ends in .whl")


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
    """Raise `Refused` if the disk is too small for a new environment."""
    nearest = next(one for one in (venv.absolute(), *venv.absolute().parents) if one.exists())
    free = shutil.disk_usage(nearest).free / GIB
    if free < DISK_GIB and not (venv / "bin/vllm").exists():
        raise Refused(
            f"{nearest} has {free:.1f} GB free but {DISK_GIB} are needed; make room, or give VENV=PATH elsewhere"
        )


def run(step: Step) -> None:
    """Run a step and show its output.

    Raises:
        Failed: its exit code is not 0.
    """
    said: deque[str] = deque(maxlen=400)
    environment = {**os.environ, **step.variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    try:
        with subprocess.Popen(step.command, env=environment, **pipes) as process:
            for line in process.stdout:
                said.append(line)
                print(line, end="", flush=True)
    except OSError as error:
        why = f": {error}"
    else:
        if not process.returncode:
            return
        why = reason(process.returncode, "".join(said))
    raise Failed(f"step '{step.name}' failed{why}. Try: {way(step, [*said, why])}")


def reason(code: int, said: str) -> str:
    """Return the last line with an error, if possible not pip's summary, which follows the actual error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(?i)error\b|Killed|^\w* *fatal", line)]
    told = [line for line in errors if not re.search(r"subprocess-exited|metadata-generation|Failed to build", line)]
    how = f" by {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"
    return how + "".join(f": {line[:300]}" for line in (told or errors or lines)[-1:])


def way(step: Step, said: Iterable[str]) -> str:
    """Return advice for this output."""
    text = "".join(said)
    found = [advice for pattern, advice in WAYS if re.search(pattern, text)]
    return "; ".join([*found[:2], step.otherwise])


if __name__ == "__main__":
    sys.exit(main())
