"""Generate completions with vLLM: one engine runs in this process, several as the host's Ray actors.

Completions return as they finish and new requests replace them, so engines never drain between batches, and a killed
evaluation loses only the requests in flight. Each request has its own seed, so order and engines do not matter.
"""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.backend.cpu import ENGINE_DTYPES, SHARED_BLOCK, kv_cache_bytes
from openrlhf_ktae.base.cut_off import CutOff, require_complete
from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.processes.deaths import in_one_line, of_type

PROMPT_TOKENS = 256  # assumed length of a prompt if --max_model_len is not set
IN_FLIGHT = 512  # requests queued per engine: more than vLLM runs at a time, so it never starves
CUT_OFF_TRIES = 3  # of one request, before the evaluation stops
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled."""

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 3072
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engines:
    """The model to load, and the engines to run it on."""

    model: str
    engines: int = 1
    tensor_parallel_size: int = 1
    dtype: str = "bf16"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9


@dataclass(frozen=True)
class Request:
    """A request for one completion: key (benchmark, id, sample) and the prompt's token ids."""

    key: Key
    prompt_ids: list[int]


@dataclass(frozen=True)
class Completion:
    """The completion of one request; `cut_off` is the reason if it was cut off, which makes it unusable."""

    key: Key
    text: str
    tokens: int
    truncated: bool
    cut_off: str = ""


def generate(engine: Any, requests: Iterable[Request]) -> Iterator[Completion]:
    """Yield a completion for each request, keeping the engine full; cut-off requests are retried.

    An engine such as `LocalEngine` accepts requests up to its capacity and returns completions in any order.

    Raises CutOff if a request was cut off `CUT_OFF_TRIES` times.
    """
    waiting, running = iter(requests), dict[Key, Request]()
    cut = Counter[Key]()
    while True:
        while len(running) < engine.capacity and (request := next(waiting, None)) is not None:
            engine.submit(request)
            running[request.key] = request
        if not running:
            return
        for completion in engine.finished():
            request = running.pop(completion.key)
            if not completion.cut_off:
                yield completion
                continue
            cut[request.key] += 1
            if cut[request.key] >= CUT_OFF_TRIES:
                raise CutOff(f"{completion.cut_off}, {CUT_OFF_TRIES} times for the problem {request.key}")
            waiting = chain([request], waiting)


def open_engine(engines: Engines, sampling: Sampling, backend: Backend, say: Callable[[str], None]) -> Any:
    """Return an engine that loads the model; Ray's engines may still be loading when it returns."""
    args = _host_arguments(engines)
    for name, value in backend.environment(args).items():
        os.environ.setdefault(name, value)
    say(f"loading {engines.model} on {engines.engines} engine{'s' if engines.engines > 1 else ''} ({backend.name})")
    if engines.engines > 1:
        return RayEngines(engines, sampling, backend, args)
    return LocalEngine(engines, sampling, backend)


def parameters(sampling: Sampling, key: Key) -> Any:
    """Return vLLM's sampling parameters for one request."""
    from vllm import SamplingParams

    digest = hashlib.sha256(repr((sampling.seed, *key)).encode()).digest()
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        seed=int.from_bytes(digest[:4], "big") if sampling.temperature > 0 else None,
        stop=list(sampling.stop) or None,
        skip_special_tokens=False,  # as in training, since `</answer>` may be special; vLLM removes the end token
    )


class LocalEngine:
    """vLLM in this process."""

    capacity = IN_FLIGHT

    def __init__(self, engines: Engines, sampling: Sampling, backend: Backend) -> None:
        from vllm import EngineArgs, LLMEngine

        options: dict[str, Any] = {"gpu_memory_utilization": engines.gpu_memory_utilization, "dtype": "auto"}
        if backend.name == "cpu":
            dtype = ENGINE_DTYPES[engines.dtype]
            length = engines.max_model_len or sampling.max_new_tokens + PROMPT_TOKENS
            cache = kv_cache_bytes(engines.model, engines.dtype, IN_FLIGHT, length)
            options = {"dtype": dtype, "kv_cache_memory_bytes": cache, "enforce_eager": True}
            options["block_size"] = SHARED_BLOCK
        if engines.max_model_len is not None:
            options["max_model_len"] = engines.max_model_len
        self._sampling = sampling
        self._keys: dict[str, Key] = {}
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=engines.model,
                tensor_parallel_size=engines.tensor_parallel_size,
                enable_prefix_caching=True,
                seed=sampling.seed,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        )

    def submit(self, request: Request) -> None:
        """Start one request."""
        name = str(len(self._keys))
        self._keys[name] = request.key
        self._engine.add_request(name, request.prompt_ids, parameters(self._sampling, request.key))

    def finished(self) -> list[Completion]:
        """Run one step of the engine and return the requests that finished."""
        done = [output for output in self._engine.step() if output.finished]
        return [_completion(self._keys[output.request_id], output) for output in done]

    def close(self) -> None:
        """Shut down the engine and its processes, if any."""
        self._engine.engine_core.shutdown()


class RayEngines:
    """The host's vLLM actors, as in training."""

    def __init__(self, engines: Engines, sampling: Sampling, backend: Backend, args: SimpleNamespace) -> None:
        from openrlhf_ktae.backend import cluster
        from openrlhf_ktae.trainer.ray.classes import host_classes

        variables = cluster.environment(args, backend)
        for name, value in variables.items():
            os.environ.setdefault(name, value)
        if not cluster.cluster_to_join():  # before Ray is imported, which reads it
            os.environ.update(cluster.cluster_of_its_own(args.run.verbose, cluster.has_dashboard(backend, args)))
        backend.prepare_driver()
        cluster.start_ray(args, backend, variables)
        for (module, attribute), actor_class in host_classes(backend.name).items():
            setattr(importlib.import_module(module), attribute, actor_class)
        from openrlhf.trainer.ray.vllm_engine import create_vllm_engines

        self._sampling = sampling
        self._engines = create_vllm_engines(
            num_engines=engines.engines,
            tensor_parallel_size=engines.tensor_parallel_size,
            pretrain=engines.model,
            seed=sampling.seed,
            full_determinism=False,
            enable_prefix_caching=True,
            enforce_eager=backend.name == "cpu",
            max_model_len=engines.max_model_len,
            gpu_memory_utilization=engines.gpu_memory_utilization,
        )
        self.capacity = IN_FLIGHT * engines.engines
        self._running: dict[Any, tuple[Key, int]] = {}
        self._loads = [0] * engines.engines

    def submit(self, request: Request) -> None:
        """Start one request on the least loaded engine."""
        engine = self._loads.index(min(self._loads))
        self._loads[engine] += 1
        ref = self._engines[engine].generate.remote(request.prompt_ids, parameters(self._sampling, request.key))
        self._running[ref] = (request.key, engine)

    def finished(self) -> list[Completion]:
        """Wait until a request finishes; return the completions of all that have finished."""
        import ray

        refs = list(self._running)
        ray.wait(refs, num_returns=1)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        completions = []
        for ref in done:
            key, engine = self._running.pop(ref)
            self._loads[engine] -= 1
            try:
                completions.append(_completion(key, ray.get(ref)))
            except Exception as error:
                if not of_type(error, (CutOff.__name__,)):
                    raise
                completions.append(Completion(key, "", 0, False, in_one_line(error)))
        return completions

    def close(self) -> None:
        """Shut down the engines and, unless it was joined, their cluster."""
        import ray

        ray.shutdown()


def _completion(key: Key, output: Any) -> Completion:
    try:
        one = require_complete(output).outputs[0]
    except CutOff as error:
        return Completion(key, "", 0, False, str(error))
    return Completion(key, one.text, len(one.token_ids), one.finish_reason == "length")


def _host_arguments(engines: Engines) -> SimpleNamespace:
    """Return the host's arguments that the backend and the cluster read, for engines without a trainer."""
    none = SimpleNamespace(num_nodes=0, num_gpus_per_node=0, model_name_or_path=None)
    return SimpleNamespace(
        actor=none,
        ref=none,
        critic=none,
        reward=SimpleNamespace(num_nodes=0, num_gpus_per_node=0, remote_url="none"),
        train=SimpleNamespace(
            colocate_all=False, async_enable=False, colocate_actor_ref=False, colocate_critic_reward=False
        ),
        algo=SimpleNamespace(kl=SimpleNamespace(init_coef=0)),
        ds=SimpleNamespace(param_dtype=engines.dtype),
        vllm=SimpleNamespace(num_engines=engines.engines, tensor_parallel_size=engines.tensor_parallel_size),
        verifier=SimpleNamespace(enable=False),
        faults=SimpleNamespace(config=FaultsConfig(rollout_retries=0)),
        model=SimpleNamespace(trust_remote_code=False),
        run=SimpleNamespace(verbose=False, dashboard_host="127.0.0.1"),
    )
