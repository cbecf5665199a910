"""Values of prefixes: where and with which seeds they are sampled; the rest of the run must not change."""

from __future__ import annotations

import asyncio
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from marks import SLOW
from test_data_position import WORDS, response

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.checks.credit_file import value_problems
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.credit.mc_value import McValueOptions

VALUED = WORDS.replace("ktae", "mc_value")
RESPONSES = ([5, 6, 7], [5, 6, 8], [5, 9, 7], [5, 9, 7])


@pytest.mark.parametrize(
    ("options", "texts", "places"),
    [
        ({"every": 2}, ["a"] * 5, [2, 4]),
        ({"every": 2}, ["a"] * 4, [2]),
        ({"every": 0, "delimiter": "\n"}, ["a", "b\n", "c", "\n\n", "d", "\n"], [2, 4]),
        ({"every": 0, "delimiter": "\n\n"}, ["a\n", "\nb", "c"], [2]),
        ({"every": 3, "delimiter": ";"}, ["a;", "b", "c", "d;", "e"], [1, 3, 4]),
        ({"every": 2}, [], []),
    ],
)
def test_places_end_steps_but_not_the_response(options, texts, places):
    assert McValueOptions(**options).places(texts) == places


class Engine:
    """Half of the rollouts are right (all for p1); a continuation is right if its prefix contains token 6."""

    def __init__(self, ray, log):
        def generate(prompt, label, num_samples, sampling_params, **_):
            seed, begun = sampling_params.seed, list(getattr(prompt, "begun", ()))
            log.append((str(prompt), label, begun, num_samples, seed))
            if begun:
                scores = [float(6 in begun and i != 1) for i in range(num_samples)]
                return ray.put(
                    [{"scores": math.nan if i == 3 else s, "sampled_tokens": 2} for i, s in enumerate(scores)]
                )
            right = 4 if prompt == "p1" else 2
            made = []
            for i, ids in enumerate(RESPONSES[:num_samples]):
                one = response(prompt, label, float(i < right)) | {"sampling_seed": seed}
                made.append(one | {"observation_tokens": [1, 2, *ids], "action_ranges": [(2, 5)]})
            return ray.put(made)

        self.generate_responses = SimpleNamespace(remote=generate)
        self.hold = self.release = SimpleNamespace(remote=lambda *_: ray.put(0))
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))


def generator(ray, *words, estimator="mc_value"):
    from torch.utils.data import DataLoader

    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    args = parse_command_line([*WORDS.replace("ktae", estimator).split(), "--full_determinism", *words])
    rows = [("default", f"p{i}", "label", None) for i in range(8)]
    loader = DataLoader(rows, batch_size=1, collate_fn=lambda batch: tuple(list(c) for c in zip(*batch, strict=True)))
    log = []
    no_ids = {"name_or_path": "", "eos_token_id": None, "pad_token_id": None, "bos_token_id": None}
    no_ids |= {"all_special_ids": []}
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"<{i}>" for i in ids), **no_ids)
    return KTAESamplesGenerator(SimpleNamespace(args=args), loader, loader, tokenizer, [Engine(ray, log)]), log


EVERY = ("--algo.mc_value.every", "1")


@pytest.fixture
def sampled(ray_here):
    made, log = generator(ray_here, *EVERY)
    batch, *_ = made.generate_samples()
    return made, log, batch


def test_places_of_mixed_groups_get_the_mean_score(sampled):
    made, log, batch = sampled
    nan = math.nan
    expected = [[nan, 0.0, 2 / 3, nan]] * 2 + [[nan, 0.0, 0.0, nan]] * 2  # one of three known scores is wrong
    assert [rollout.values.shape for rollout in batch] == [(1, 4)] * 16
    for number, rollout in enumerate(batch):
        row = [nan] * 4 if rollout.prompts == ["p1"] else expected[number % 4]
        torch.testing.assert_close(rollout.values[0], torch.tensor(row), equal_nan=True)
    asked = [entry for entry in log if entry[2]]
    assert [begun for _, _, begun, _, _ in asked] == [[5], [5, 6], [5, 9]] * 3, "shared prefixes must be sampled once"
    assert {(label, count) for _, label, _, count, _ in asked} == {("label", 4)}
    assert len({seed for *_, seed in log}) == len(log)
    metrics = made.continuation_metrics
    assert metrics.pop("credit/continuation_seconds") > 0
    assert metrics == {
        "credit/continuations": 36.0, "credit/continuation_tokens": 72.0, "credit/unknown_continuations": 9.0
    }  # fmt: skip


def test_all_groups_can_be_sampled(ray_here):
    made, log = generator(ray_here, *EVERY, "--algo.mc_value.groups", "all", "--algo.mc_value.samples", "2")
    made.generate_samples()
    asked = [entry for entry in log if entry[2]]
    assert (len(asked), {count for *_, count, _ in asked}) == (12, {2})


def test_values_do_not_change_the_rollouts(sampled, ray_here):
    made, log, _ = sampled
    other, log_of_other = generator(ray_here, estimator="tempo")
    batch, *_ = other.generate_samples()
    for one in (made, other):
        one.generate_samples()
    assert [entry for entry in log if not entry[2]] == log_of_other
    assert all(rollout.values is None for rollout in batch)
    assert other.continuation_metrics == {}


def test_a_resumed_run_samples_the_same_continuations(sampled, ray_here):
    made, log, _ = sampled
    position = made.position()
    log.clear()
    made.generate_samples()
    again, log_again = generator(ray_here, *EVERY)
    again.load_position(position)
    for _ in range(4):  # the prompt loader has its own state
        next(again._dataloader_iter)
    again.generate_samples()
    assert log_again == log


def test_sampling_repeated_after_a_death_has_the_same_seeds(ray_here, monkeypatch):
    from ray.exceptions import ActorDiedError

    made, log = generator(ray_here, *EVERY)
    expected, log_of_other = generator(ray_here, *EVERY)
    expected.generate_samples()
    sample, deaths = made._sample, []

    def dies_once(*given):
        sample(*given)
        if not deaths:
            deaths.append(given)
            log.clear()
            raise ActorDiedError

    monkeypatch.setattr(made, "revive", lambda error: None)
    monkeypatch.setattr(made, "_sample", dies_once)
    made.send_weights = str
    made.generate_samples()
    assert deaths
    assert log == log_of_other


def test_evaluations_sample_no_continuations(ray_here):
    made, log = generator(ray_here, *EVERY)
    made.generate_eval_samples(n_samples_per_prompt=4)
    assert not [entry for entry in log if entry[2]]


FILE = "def values(prompt, prefixes, label):\n    return [{}]\n"


def test_values_from_a_file(ray_here, tmp_path):
    path = tmp_path / "oracle.py"
    path.write_text(FILE.format("len(text) + (prompt == 'p1') for text in prefixes"))
    made, log = generator(ray_here, *EVERY, "--algo.mc_value.file", str(path))
    batch, *_ = made.generate_samples()
    assert not [entry for entry in log if entry[2]]
    for rollout in batch:
        assert rollout.values[0, 1:3].tolist() == [3 + (rollout.prompts == ["p1"]), 6 + (rollout.prompts == ["p1"])]
    path.write_text(FILE.format("1 for _ in prefixes[1:]"))
    made, _ = generator(ray_here, *EVERY, "--algo.mc_value.file", str(path))
    with pytest.raises(TrainingStopped, match=r"failed for 3 prefixes .*; return one number per prefix"):
        made.generate_samples()


def test_an_executor_continues_and_grades_the_whole_response(host):
    from vllm import SamplingParams

    from openrlhf_ktae.trainer.ray.continuations import Begun, continued

    seen = {}

    class Plain:
        name = "engine"

        async def generate(self, ids, params, multi_modal_data=None):
            seen.update(ids=ids, params=params)
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=[8, 9])])

    async def execute(prompt, label, sampling_params, llm_engine):
        output = await llm_engine.generate([1, 2], sampling_params, multi_modal_data=None)
        assert (type(prompt), llm_engine.name) == (str, "engine")
        ids = output.outputs[0].token_ids
        return {"scores": float(ids == [5, 6, 8, 9]), "observation_tokens": [1, 2, *ids]}

    params = SamplingParams(max_tokens=7, min_tokens=1, logprobs=1, seed=3)
    call = {"label": "l", "sampling_params": params, "llm_engine": Plain()}
    prompt = pickle.loads(pickle.dumps(Begun("p", (5, 6))))
    found = asyncio.run(continued(execute)(prompt=prompt, **call))
    assert found == {"scores": 1.0, "sampled_tokens": 2, "hint": ""}
    given = seen["params"]
    assert seen["ids"] == [1, 2, 5, 6]
    assert (given.max_tokens, given.min_tokens, given.logprobs, given.seed) == (5, 0, None, 3)
    assert (params.max_tokens, params.min_tokens, params.logprobs) == (7, 1, 1)
    plain = asyncio.run(continued(execute)(prompt="p", **call))
    assert plain["observation_tokens"] == [1, 2, 8, 9]
    assert seen["params"].max_tokens == 7


@SLOW
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", ""),
        ("--async_train", "--train.async_enable true: "),
        ("--agent_func_path agent.py", "--train.agent_func_path agent.py: "),
        ("--reward.model_name_or_path m --train.dynamic_batch_enable", "--reward.model_name_or_path m: "),
        ("--train.replay folder", "--train.replay folder: "),
        ("--algo.mc_value.file none.py", "--algo.mc_value.file none.py: no such file"),
        ("--async_train --algo.mc_value.file {file}", ""),
        ("--algo.mc_value.file {empty}", "defines no function values"),
    ],
)
def test_runs_that_cannot_sample_are_refused(words, said, tmp_path):
    (tmp_path / "file.py").write_text(FILE.format(""))
    (tmp_path / "empty.py").write_text("")
    words = words.format(file=tmp_path / "file.py", empty=tmp_path / "empty.py")
    problems = list(value_problems(parse_command_line([*VALUED.split(), *words.split()])))
    assert len(problems) == bool(said), problems
    assert said in "".join(problems)
