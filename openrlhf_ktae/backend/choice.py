"""Choose the backend of a run."""

from openrlhf_ktae.backend.base import BACKENDS, Backend
from openrlhf_ktae.backend.cluster import cluster_to_join
from openrlhf_ktae.backend.cpu import CpuBackend, vllm_build
from openrlhf_ktae.backend.cuda import CudaBackend
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.gpu_machine import gpus, hidden_gpus

NO_GPU = (
    "no NVIDIA GPU found on this machine{}, and RAY_ADDRESS names no cluster with GPUs. Run it on a machine with a "
    "GPU (`nvidia-smi` lists them), submit it to a cluster (`ray job submit`)"
)


def resolve(name: str) -> Backend:
    """Return the backend called `name`; `auto` is `cpu` with vLLM's CPU build, else `cuda` if a GPU can be reached.

    Raises BadOption if the installed vLLM cannot run on the chosen device, no GPU can be reached for `cuda` or for
    vLLM's CUDA build, or the name is not in `BACKENDS`. Without vLLM and a GPU, `auto` is `cpu`.
    """
    if name not in BACKENDS:
        raise BadOption(f"--backend {name}: choose one of {', '.join(BACKENDS)}")
    if name == "cpu":
        if vllm_build() == "cuda":
            raise BadOption(
                "--backend cpu: the CUDA build of vLLM is installed, which a CPU cannot run. `make setup` installs the "
                "CPU builds in a separate environment; on a GPU leave --backend out."
            )
        return CpuBackend()
    if vllm_build() == "cpu":
        if name == "auto":
            return CpuBackend()
        raise BadOption(
            "--backend cuda: the CPU build of vLLM is installed. Use --backend cpu, or install the GPU builds in a "
            "separate environment (`make setup-gpu`)."
        )
    if gpus() or cluster_to_join():
        return CudaBackend()
    hidden = hidden_gpus()
    no_gpu = NO_GPU.format(f" ({hidden} hides its GPUs: unset it)" if hidden else "")
    if name == "cuda":
        raise BadOption(f"--backend cuda: {no_gpu}, or use --backend cpu with the CPU builds (`make setup`).")
    if vllm_build() == "cuda":
        raise BadOption(
            f"--backend auto: {no_gpu}. The CUDA build of vLLM is installed, which a CPU cannot run; `make setup` "
            "installs the CPU builds in a separate environment."
        )
    return CpuBackend()
