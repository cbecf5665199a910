"""Checks before a run besides the table of refusals: accepted inputs, and a Hub that does not answer."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from openrlhf_ktae.base.batches import data_ranks, models, trainable
from openrlhf_ktae.checks.data_columns import data_problems
from openrlhf_ktae.checks.sizes import batch_problems, parallel_problems
from openrlhf_ktae.checks.user_code import _tried, judge_problems, log_keys
from openrlhf_ktae.data import hub
from openrlhf_ktae.verifier.config import VerifierConfig

ROW = '{"input": "1 + 1 :", "label": "2"}\n'


def test_accepted_batch_sizes_train_on_all_rollouts():
    """The host drops the remainder of a batch: with a dynamic batch of 16 rollouts over 3 ranks, all of them."""
    chosen, accepted = random.Random(0), 0
    for _ in range(4000):
        pick = chosen.choice
        args = SimpleNamespace(
            actor=SimpleNamespace(num_nodes=pick((1, 2)), num_gpus_per_node=pick((1, 2, 3, 4))),
            ds=SimpleNamespace(ring_attn_size=pick((1, 1, 2)), tensor_parallel_size=pick((1, 1, 2)), zero_stage=3),
            train=SimpleNamespace(
                batch_size=pick((4, 8, 12, 16, 48)),
                micro_batch_size=pick((1, 2)),
                dynamic_batch_enable=pick((True, False)),
                colocate_all=False,
                colocate_actor_ref=False,
                colocate_critic_reward=False,
                async_enable=False,
            ),
            rollout=SimpleNamespace(
                batch_size=pick((4, 6, 12)),
                n_samples_per_prompt=pick((2, 4)),
                micro_batch_size=pick((1, 2)),
                vllm_generate_batch_size=None,
            ),
            vllm=SimpleNamespace(num_engines=1, tensor_parallel_size=1),
            algo=SimpleNamespace(kl=SimpleNamespace(init_coef=pick((0, 0.1)))),
            ref=SimpleNamespace(num_nodes=1, num_gpus_per_node=pick((1, 2, 3))),
            critic=SimpleNamespace(num_nodes=1, num_gpus_per_node=pick((1, 2, 3)), model_name_or_path=pick(("", "c"))),
            reward=SimpleNamespace(model_name_or_path=None, remote_url="agent"),
        )
        problems = [*batch_problems(args), *(p for p in parallel_problems(args) if "zero_stage" not in p)]
        if not problems:
            accepted += 1
            rollouts = args.rollout.batch_size * args.rollout.n_samples_per_prompt
            assert trainable(rollouts, args) == rollouts, args
            micro_batches = rollouts // args.rollout.micro_batch_size
            for model in models(args):
                dynamic = args.train.dynamic_batch_enable
                assert (data_ranks(args) if dynamic else micro_batches) % data_ranks(args, model) == 0
    assert accepted > 100


@pytest.fixture
def fresh_hub(monkeypatch):
    monkeypatch.setattr(hub, "_silent", type(hub._silent)())
    hub._there.cache_clear()
    yield hub
    hub._there.cache_clear()


def test_an_unreachable_hub_is_not_said_to_lack_the_model(fresh_hub, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.repo_exists", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert "could not be reached" in hub.missing("nobody/none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in hub.missing("nobody/other")


def test_a_hub_that_never_answers_is_queried_once(fresh_hub, monkeypatch):
    from huggingface_hub import hf_api

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(hf_api.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
        started = time.monotonic()
        assert "not in the local cache" in hub.missing("nobody/none")
        assert hub.SECONDS <= time.monotonic() - started < hub.SECONDS + 4
        started = time.monotonic()
        assert "not in the local cache" in hub.missing("nobody/other", "dataset")
        assert time.monotonic() - started < 1


def problems_of_data(names, **more):
    data = {"prompt_dataset": names, "prompt_split": "train", "prompt_probs": None, "max_samples": 10**8}
    return list(
        data_problems(
            SimpleNamespace(
                data=SimpleNamespace(**data, input_key="input", label_key="label", apply_chat_template=False, **more),
                eval=SimpleNamespace(dataset=None),
                verifier=SimpleNamespace(enable=True),
                rollout=SimpleNamespace(n_samples_per_prompt=4, micro_batch_size=1),
                train=SimpleNamespace(batch_size=16, dynamic_batch_enable=False),
                actor=SimpleNamespace(num_nodes=1, num_gpus_per_node=1),
                ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
                algo=SimpleNamespace(kl=SimpleNamespace(init_coef=0)),
                critic=SimpleNamespace(model_name_or_path=None),
                reward=SimpleNamespace(model_name_or_path=None, remote_url="agent"),
            )
        )
    )


def test_columns_of_a_cached_hub_data_set_are_checked(fresh_hub, monkeypatch, tmp_path):
    import pyarrow as pa
    from huggingface_hub import constants
    from pyarrow import parquet

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "datasets--some--sums" / "snapshots" / "abc"
    place.mkdir(parents=True)
    parquet.write_table(pa.table({"input": ["1"], "answer": ["1"]}), place / "train-0.parquet")
    (found,) = problems_of_data("some/sums")
    assert found == "--data.label_key label: some/sums has no such column; it has answer, input"
    parquet.write_table(pa.table({"input": ["1"], "label": ["1"]}), place / "train-0.parquet")
    assert problems_of_data("some/sums") == []
    (place / "train-0.parquet").write_text("torn")
    assert problems_of_data("some/sums") == [], "a damaged file is downloaded again"


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": ROW * 2, "below/b.jsonl": ROW * 2},
        {"train.jsonl": ROW * 4, "test.jsonl": '{"other": 1}\n'},
        {"a.jsonl": ROW * 4, "README.md": "# data", ".cache/x.jsonl": "{", "dataset_info.json": "{}"},
        {"a.jsonl.gz": "packed"},
    ],
)
def test_folders_with_prompts_are_accepted(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert problems_of_data(str(tmp_path)) == []


def test_a_folder_written_by_datasets_is_accepted(tmp_path):
    import pyarrow as pa
    from pyarrow import ipc

    for split, rows in (("train", 8), ("test", 1)):
        place = tmp_path / split
        place.mkdir()
        table = pa.table({"input": ["1"] * rows, "label": ["1"] * rows})
        with ipc.new_stream(str(place / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        (place / "state.json").write_text("{}")
    assert problems_of_data(str(tmp_path)) == []


JUDGES = {
    "function.py": "def reward_func(queries, prompts, labels, **more): return {'rewards': [0.0]}",
    "talks.py": "print('hello')\nreward_func = lambda queries, prompts, labels: {'rewards': [0.0]}",
    "object.py": "class Judge:\n    def __call__(self, queries, prompts, labels): ...\nreward_func = Judge()",
}
AGENTS = {
    "plain.py": "import os\nclass AgentExecutor: ...",
    "imported.py": "from openrlhf_ktae.verifier.agent import AgentExecutor",
    "renamed.py": "class Mine: ...\nAgentExecutor = Mine",
    "guarded.py": "try:\n    from no_such_module import AgentExecutor\nexcept ImportError:\n    AgentExecutor = None",
}


@pytest.mark.parametrize("name", [*JUDGES, *AGENTS])
def test_a_users_judge_is_accepted(name, tmp_path):
    path = tmp_path / name
    path.write_text((JUDGES | AGENTS)[name])
    reward_file, agent = (str(path), None) if name in JUDGES else ("", str(path))
    args = SimpleNamespace(
        verifier=SimpleNamespace(config=VerifierConfig(reward_file=reward_file), enable=name in JUDGES),
        train=SimpleNamespace(agent_func_path=agent),
        reward=SimpleNamespace(remote_url=None),
        data=SimpleNamespace(prompt_dataset=None, input_key="input", label_key="label"),
    )
    assert list(judge_problems(args)) == []


def test_names_of_extra_logs_come_from_the_first_call_of_a_reward_function(tmp_path):
    source = (
        "def reward_func(queries, prompts, labels):\n    return {'rewards': [1.0], 'extra_logs': {'words': 3, 'a': 1}}"
    )
    (tmp_path / "reward.py").write_text(source)
    (tmp_path / "rows.jsonl").write_text(ROW)

    def keys(data="rows.jsonl", **config):
        return log_keys(
            SimpleNamespace(
                verifier=SimpleNamespace(config=VerifierConfig(reward_file=str(tmp_path / "reward.py"), **config)),
                data=SimpleNamespace(prompt_dataset=str(tmp_path / data), input_key="input", label_key="label"),
            )
        )

    assert keys(reward_log_keys=()) == ("a", "words")
    assert keys(reward_log_keys=("a",)) == ("a",), "the user's names win"
    (tmp_path / "rows.csv").write_text('input,label\n1 + 1 :,"2"2\n')
    assert keys("rows.csv", reward_log_keys=()) == (), "a broken data set is reported by its own check"


def test_a_reward_function_waiting_for_a_server_is_not_refused(tmp_path):
    lines = ["def reward_func(queries, prompts, labels):", "    raise ConnectionRefusedError('not up yet')"]
    (tmp_path / "reward.py").write_text("\n".join(lines))
    first = '[{"input": "1"}, "1", "2"]'
    assert _tried(str(tmp_path / "reward.py"), first).problem == ""


INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "openrlhf_ktae.verifier.config":
            os.kill(os.getpid(), signal.SIGINT)

signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["--help"]
runpy.run_module("openrlhf_ktae.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
"""


def test_an_interrupt_while_the_command_is_imported_leaves_no_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert done.stderr.startswith("interrupted: ")
