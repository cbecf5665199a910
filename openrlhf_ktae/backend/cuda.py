"""The `cuda` backend: nothing is patched; the classes that are trained, and the engine, are the host's extended.

What a GPU machine lacks is found before anything loads, without a CUDA context in this process: `docs/gpu.md`.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import flash_attn_stub
from openrlhf_ktae.backend.base import Backend

FLASH = "flash_attention_2"
WAY_OUT = (
    "install it (docs/gpu.md says how), or give --ds.attn_implementation sdpa --ds.packing_samples false "
    "--train.dynamic_batch_enable false"
)
FIRST_DRIVERS = {12: 525, 13: 580}  # CUDA's major version -> NVIDIA's first driver for it (CUDA's release notes)
HEADERS = ("cublas_v2.h", "cuda_runtime_api.h", "cusolverDn.h", "cusparse.h")  # of ATen/cuda/CUDAContextLight.h
PREBUILT = "or install with `make setup-gpu PREBUILD=1` on a machine that has it"


class CudaBackend(Backend):
    """NVIDIA GPUs with the host's own pins."""

    name = "cuda"

    def problems(self, args: SimpleNamespace) -> list[str]:
        """What needs flash-attention or cupy and lacks it, and what this machine lacks if it has GPUs.

        A machine without one only leads the run: those of its cluster cannot be seen from here.
        """
        found = [*_attention_problems(args)]
        if args.vllm.sync_with_ray and importlib.util.find_spec("cupy") is None:
            found.append(
                "--vllm.sync_with_ray true: Ray's collectives need cupy, which is not installed. Leave it out (weights "
                "then go by vLLM's own NCCL), or install cupy-cuda13x."
            )
        if gpus_here():
            found += [*_driver_problems(), *_compiler_problems(args)]
        return found

    def adapt(self, args: SimpleNamespace) -> list[str]:
        """Change nothing; say it where the run goes without flash-attention."""
        if flash_attn_stub.is_installed() or FLASH in args.ds.attn_implementation:
            return []
        return [f"flash-attn is not installed: --ds.attn_implementation {args.ds.attn_implementation}, no packing"]

    def environment(self, args: SimpleNamespace) -> dict[str, str]:
        """With full determinism vLLM's kernels must give a row the same numbers whatever else is in its batch."""
        train = getattr(args, "train", None)
        return {"VLLM_BATCH_INVARIANT": "1"} if getattr(train, "full_determinism_enable", False) else {}

    def prepare_driver(self) -> None:
        """Let the host import what it takes from flash-attention."""
        flash_attn_stub.provide()

    def worker_setup_hook(self) -> str:
        """The same in every Ray worker: each node answers for itself whether the package is there."""
        return "openrlhf_ktae.backend.flash_attn_stub.provide"

    def ray_init_options(self, args: SimpleNamespace) -> dict[str, Any]:
        """A cluster of its own, with a token, even where Ray's file names one that runs here; RAY_ADDRESS joins it."""
        return {"address": "local", **super().ray_init_options(args)}


def gpus_here() -> int:
    """Return how many GPUs this machine has. The driver is asked, not torch, which would make a CUDA context."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver, no library: the ways to have no GPU differ by machine
        return 0


def _attention_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what cannot work without flash-attention, where that is missing."""
    if flash_attn_stub.is_installed():
        return
    if args.ds.ring_attn_size > 1:
        yield (
            f"--ds.ring_attn_size {args.ds.ring_attn_size}: ring attention needs flash-attn, which is not installed; "
            f"{WAY_OUT} --ds.ring_attn_size 1"
        )
    elif args.ds.attn_implementation == FLASH:
        asked = f"--ds.attn_implementation {FLASH}"
        if args.train.dynamic_batch_enable:
            asked = "--train.dynamic_batch_enable true (it packs samples)"
        elif args.ds.packing_samples:
            asked = "--ds.packing_samples true"
        yield f"{asked}: needs flash-attn, which is not installed; {WAY_OUT}"


def _driver_problems() -> Iterator[str]:
    """Yield a torch that no driver can serve, and an NVIDIA driver that is too old for the CUDA version of torch."""
    import pynvml

    needed = _torch_cuda()
    if needed is None:
        yield (
            "--backend cuda: the CPU build of torch is installed. Install the CUDA build (requirements/gpu.txt; "
            "`pip install torch===2.13.0` does not take 2.13.0+cpu), or use --backend cpu with the CPU builds."
        )
        return
    major, has = int(needed.split(".")[0]), pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000  # 13000 is 13.0
    if has < major:
        first = f" (version {FIRST_DRIVERS[major]} or newer)" if major in FIRST_DRIVERS else ""
        yield (
            f"--backend cuda: the NVIDIA driver {_text(pynvml.nvmlSystemGetDriverVersion())} serves CUDA {has}, and "
            f"torch was built for CUDA {needed}. Install a newer driver{first}, or NVIDIA's cuda-compat-{major}."
        )


def _compiler_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is missing to compile DeepSpeed's Adam, which it does at its first use unless it was built before."""
    operator = "cpu_adam" if args.ds.adam_offload else "fused_adam"
    needed = _torch_cuda()
    if needed is None or _is_prebuilt(operator):
        return
    why = f"--backend cuda: DeepSpeed compiles its optimizer ({operator}) at first use"
    home = _cuda_home()
    nvcc = home / "bin/nvcc"
    if not nvcc.is_file():
        yield (
            f"{why}, and there is no compiler {nvcc}. Install the CUDA toolkit {needed} on each node, or name it in "
            f"CUDA_HOME, {PREBUILT}."
        )
        return
    found = _release(nvcc)
    if found != needed and os.environ.get("DS_SKIP_CUDA_CHECK") != "1":
        yield (
            f"{why} and refuses CUDA {found} ({nvcc}), because torch was built for {needed}. Name a CUDA toolkit "
            f"{needed} in CUDA_HOME, or set DS_SKIP_CUDA_CHECK=1 to try this one."
        )
    folders = (home / "include", home / "targets/x86_64-linux/include")
    missing = [name for name in HEADERS if not any((folder / name).is_file() for folder in folders)]
    if missing and "CPATH" not in os.environ:
        yield (
            f"{why}, and the CUDA toolkit in {home} lacks {', '.join(missing)}: install all of it on each node or name "
            f"another in CUDA_HOME, {PREBUILT}."
        )
    compiler = os.environ.get("CXX", "c++")
    for tool, way in (("ninja", "activate the environment that it was installed in"), (compiler, "install g++")):
        if shutil.which(tool) is None:
            beside = Path(sys.executable).with_name(tool)
            where = f" (it is at {beside})" if beside.is_file() else ""
            yield f"{why}, and {tool} is not on the PATH{where}; {way}, {PREBUILT}."


def _cuda_home() -> Path:
    """Return where torch looks for the CUDA toolkit (torch 2.13, utils/cpp_extension.py)."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    return Path(named or (on_path and str(Path(on_path).parents[1])) or "/usr/local/cuda")


def _release(nvcc: Path) -> str:
    """Return the CUDA version of a compiler, `13.0`; `unknown` where it does not say."""
    try:
        said = subprocess.run([nvcc, "-V"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        said = ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "unknown"


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, `13.0`; None for a CPU build. torch itself takes seconds."""
    text = _read_beside("torch", "version.py")
    found = re.search(r"^cuda\b[^=]*= *'(\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else None


def _is_prebuilt(operator: str) -> bool:
    """Whether DeepSpeed was installed with this operator compiled for CUDA."""
    tree = ast.parse(_read_beside("deepspeed", "git_version_info_installed.py"))
    said = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return said.get("accelerator_name") == "cuda" and bool(said.get("installed_ops", {}).get(operator))


def _read_beside(package: str, file: str) -> str:
    """Return the text of a file of an installed package, without importing that; empty where there is none."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).with_name(file) if spec and spec.origin else None
    return path.read_text(encoding="utf-8") if path and path.is_file() else ""


def _text(said: str | bytes) -> str:
    return said.decode() if isinstance(said, bytes) else said
