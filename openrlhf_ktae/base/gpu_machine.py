"""A GPU machine: its driver, CUDA, compiler, GPUs and their memory, and parts missing for training.

This queries the driver (NVML) instead of torch, which would create a CUDA context and takes seconds to import.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.host import package_folder

GIB = 2**30
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
FIRST_DRIVERS = {12: 525, 13: 580}  # CUDA's major version -> NVIDIA's first driver for it (CUDA's release notes)
HEADERS = ("cublas_v2.h", "cuda_runtime_api.h", "cusolverDn.h", "cusparse.h")  # for ATen/cuda/CUDAContextLight.h
TOOLS = {"ninja": "activate the environment that it was installed in", "c++": "install g++"}
PREBUILT = "or install with `make setup-gpu PREBUILD=1` on a machine that has it"
GPU_OPERATOR, CPU_OPERATOR = "fused_adam", "cpu_adam"
"""DeepSpeed's optimizers: on the GPU, and on the CPU with `--ds.adam_offload`."""


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes, 0 if the driver does not report it (a partitioned GPU)."""

    name: str
    capability: str
    total: int
    free: int


@dataclass(frozen=True)
class GpuMachine:
    """The parts of a machine that training depends on; the text of a missing part is empty."""

    gpus: tuple[Gpu, ...]
    driver: str
    driver_cuda: int
    """Newest major version of CUDA that the driver supports; 0 without a driver."""
    torch_cuda: str
    """CUDA version of torch, such as `13.0`; empty for a CPU build."""
    toolkit: str
    """Where torch and DeepSpeed look for the CUDA toolkit."""
    nvcc: str
    """CUDA version of the toolkit's compiler; `unknown` if the compiler prints none."""
    missing_headers: tuple[str, ...]
    missing_tools: tuple[tuple[str, str], ...]
    """Tools that are not on the PATH, and the way out."""
    prebuilt: tuple[str, ...]
    """DeepSpeed's optimizers that were compiled during installation."""

    def problems(self, operator: str = GPU_OPERATOR) -> list[str]:
        """Return the reasons why this machine cannot train with the optimizer `operator`; none without a GPU."""
        return [*self._driver_problems(), *self._compiler_problems(operator)] if self.gpus else []

    def _driver_problems(self) -> Iterator[str]:
        if not self.torch_cuda:
            yield (
                "--backend cuda: the CPU build of torch is installed. Install the CUDA build (requirements/gpu.txt; "
                "`pip install torch===2.13.0` does not take 2.13.0+cpu), or use --backend cpu with the CPU builds."
            )
        elif self.driver_cuda < (major := int(self.torch_cuda.split(".")[0])):
            first = f" (version {FIRST_DRIVERS[major]} or newer)" if major in FIRST_DRIVERS else ""
            yield (
                f"--backend cuda: the NVIDIA driver {self.driver} supports CUDA {self.driver_cuda}, but torch was "
                f"built for CUDA {self.torch_cuda}. Install a newer driver{first}, or NVIDIA's cuda-compat-{major}."
            )

    def _compiler_problems(self, operator: str) -> Iterator[str]:
        """Yield what is missing to compile DeepSpeed's Adam, which is compiled at its first use."""
        needed = self.torch_cuda
        if not needed or operator in self.prebuilt:
            return
        why = f"--backend cuda: DeepSpeed compiles its optimizer ({operator}) at first use"
        nvcc = f"{self.toolkit}/bin/nvcc"
        if not self.nvcc:
            yield (
                f"{why}, and there is no compiler {nvcc}. Install the CUDA toolkit {needed} on each node, or name it "
                f"in CUDA_HOME, {PREBUILT}."
            )
            return
        if self.nvcc != needed and os.environ.get("DS_SKIP_CUDA_CHECK") != "1":
            yield (
                f"{why} and refuses CUDA {self.nvcc} ({nvcc}), because torch was built for {needed}. Name a CUDA "
                f"toolkit {needed} in CUDA_HOME, or set DS_SKIP_CUDA_CHECK=1 to try this one."
            )
        if self.missing_headers:
            yield (
                f"{why}, and the CUDA toolkit in {self.toolkit} lacks {', '.join(self.missing_headers)}: install all "
                f"of it on each node or name another in CUDA_HOME, {PREBUILT}."
            )
        for tool, way in self.missing_tools:
            yield f"{why}, and {tool} is not on the PATH; {way}, {PREBUILT}."


def this_machine() -> GpuMachine:
    """Return the description of the machine that this process runs on."""
    home = cuda_home()
    folders = (home / "include", home / "targets/x86_64-linux/include")
    missing = [name for name in HEADERS if not any((folder / name).is_file() for folder in folders)]
    nvml = driver_library()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        serves = nvml.nvmlSystemGetCudaDriverVersion_v2() // 1000  # 13000 is 13.0
    except Exception:  # no library, or no driver
        driver, serves = "", 0
    return GpuMachine(
        gpus=gpus(),
        driver=driver,
        driver_cuda=serves,
        torch_cuda=torch_cuda(),
        toolkit=str(home),
        nvcc=release(home / "bin/nvcc"),
        missing_headers=() if "CPATH" in os.environ else tuple(missing),
        missing_tools=tuple(_missing_tools()),
        prebuilt=tuple(_prebuilt()),
    )


def driver_library() -> Any:
    """Return NVML, initialised; None without the library or a driver, which raise errors of several types."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine that a process started here can use."""
    nvml = driver_library()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return tuple(_gpu(nvml, handle) for handle in _visible(nvml, handles))
    except Exception:  # no driver, or one that has lost its GPUs
        return ()


def hidden_gpus() -> str:
    """Return the setting that hides all GPUs of this machine, such as `CUDA_VISIBLE_DEVICES=-1`; empty otherwise."""
    nvml, named = driver_library(), os.environ.get(VISIBLE_VARIABLE)
    with suppress(Exception):
        if named is not None and nvml.nvmlDeviceGetCount() and not gpus():
            return f"{VISIBLE_VARIABLE}={named}"
    return ""


def _visible(nvml: Any, handles: list[Any]) -> Iterator[Any]:
    """Yield the GPUs in CUDA_VISIBLE_DEVICES (numbers or UUIDs); like CUDA, stop at the first that does not exist."""
    named = os.environ.get(VISIBLE_VARIABLE)
    if named is None:
        yield from handles
        return
    for name in map(str.strip, named.split(",")):
        if name.isdigit() and int(name) < len(handles):
            yield handles[int(name)]
        elif name.startswith("MIG-"):
            yield handles[0]  # stands for a part of some GPU, whose memory is read by name (`gpu_memory`)
        else:
            found = [handle for handle in handles if name and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]
            if not found:
                return
            yield found[0]


def _gpu(nvml: Any, handle: Any) -> Gpu:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except Exception:
        total = free = 0
    capability = ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    return Gpu(_text(nvml.nvmlDeviceGetName(handle)), capability, total, free)


def gpu_memory(name: str) -> tuple[int, int] | None:
    """Return free and total bytes of a GPU, or of a part of one, by its number or UUID; None if they cannot be read."""
    nvml = driver_library()
    try:
        by_number, by_name = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        memory = nvml.nvmlDeviceGetMemoryInfo(by_number(int(name)) if name.isdigit() else by_name(name))
    except Exception:  # no driver, no such GPU, or one that does not report memory
        return None
    return int(memory.free), int(memory.total)


def cuda_home() -> Path:
    """Return where torch looks for the CUDA toolkit (torch 2.13, utils/cpp_extension.py)."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    return Path(named or (on_path and str(Path(on_path).parents[1])) or "/usr/local/cuda")


def release(nvcc: Path) -> str:
    """Return the CUDA version of a compiler, such as `13.0`; `unknown` if it prints none, empty without a compiler."""
    if not nvcc.is_file():
        return ""
    try:
        said = subprocess.run([nvcc, "-V"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "unknown"


def torch_cuda() -> str:
    """Return the CUDA version that torch was built for, `13.0`; empty for a CPU build."""
    found = re.search(r"^cuda\b[^=]*= *'(\d+\.\d+)", _read_beside("torch", "version.py"), re.MULTILINE)
    return found[1] if found else ""


def _missing_tools() -> Iterator[tuple[str, str]]:
    for tool, way in TOOLS.items():
        command = os.environ.get("CXX", tool) if tool == "c++" else tool
        if shutil.which(command) is None:
            beside = Path(sys.executable).with_name(command)
            yield command, f"{way} (it is at {beside})" if beside.is_file() else way


def _prebuilt() -> Iterator[str]:
    """Yield the operators that DeepSpeed was installed with, compiled for CUDA."""
    tree = ast.parse(_read_beside("deepspeed", "git_version_info_installed.py"))
    said = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    if said.get("accelerator_name") == "cuda":
        yield from (name for name, built in said.get("installed_ops", {}).items() if built)


def _read_beside(package: str, file: str) -> str:
    """Return the text of a file of an installed package without importing it; empty if there is no such file."""
    path = (package_folder(package) or Path()) / file
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said
