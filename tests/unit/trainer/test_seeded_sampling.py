"""With full determinism a rollout's seed depends only on the run's seed, its prompt and its number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from marks import SLOW
from test_data_position import WORDS, response

from openrlhf_ktae.cli.options import parse_command_line

ENGINES = 2


class Engine:
    """Logs requests and holds; Ray returns its answers in any order."""

    def __init__(self, ray, log):
        def generate(prompt, label, num_samples, sampling_params, **_):
            log.append((prompt, sampling_params.seed))
            answers = [response(prompt, label, float(i % 2)) for i in range(num_samples)]
            return ray.put([{**a, "sampling_seed": sampling_params.seed} for a in answers])

        self.generate_responses = SimpleNamespace(remote=generate)
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))
        self.hold = SimpleNamespace(remote=lambda: ray.put(log.append("hold")))
        self.release = SimpleNamespace(remote=lambda count: ray.put(log.append(("release", count))))


def generator(ray, *words):
    from torch.utils.data import DataLoader

    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    args = parse_command_line([*WORDS.split(), "--full_determinism", *words])
    rows = [("default", f"p{i}", "label", None) for i in range(16)]
    loader = DataLoader(rows, batch_size=1, collate_fn=lambda batch: tuple(list(c) for c in zip(*batch, strict=True)))
    log = []
    engines = [Engine(ray, log) for _ in range(ENGINES)]
    no_ids = {"name_or_path": "", "eos_token_id": None, "pad_token_id": None, "bos_token_id": None}
    tokenizer = SimpleNamespace(decode=lambda ids, **_: f"\\boxed{{{ids[-1]}}}", **no_ids)
    return KTAESamplesGenerator(SimpleNamespace(args=args), loader, loader, tokenizer, engines), log


def asked(log):
    return [entry for entry in log if entry != "hold" and entry[0] != "release"]


@SLOW
def test_groups_are_ordered_by_prompt(ray_here):
    made, _ = generator(ray_here)
    batch, *_ = made.generate_samples()
    assert [rollout.prompts[0] for rollout in batch] == [f"p{i // 4}" for i in range(16)]


def test_seeds_are_reproducible_and_distinct(ray_here):
    logs = []
    for words in ([], [], ["--seed", "7"]):
        made, log = generator(ray_here, *words)
        made.generate_samples()
        made.generate_samples()
        logs.append(asked(log))
    assert logs[0] == logs[1]
    assert {seed for _, seed in logs[0]}.isdisjoint(seed for _, seed in logs[2])
    assert len({seed for _, seed in logs[0]}) == 8
    assert all(0 <= seed < 2**63 for _, seed in logs[0])


def test_evaluations_repeat_their_seeds_and_do_not_shift_those_of_training(ray_here):
    made, log = generator(ray_here)
    made.generate_eval_samples(n_samples_per_prompt=1)
    first = asked(log)
    made.generate_samples()
    log.clear()
    made.generate_eval_samples(n_samples_per_prompt=1)
    assert asked(log) == first
    assert len({seed for _, seed in first}) == 16
    log.clear()
    made.generate_samples()
    other, log_of_other = generator(ray_here)
    other.generate_samples()
    log_of_other.clear()
    other.generate_samples()
    assert asked(log) == asked(log_of_other)


def test_prompts_resent_after_an_engine_death_keep_their_seeds(ray_here, monkeypatch):
    from ray.exceptions import ActorDiedError

    made, log = generator(ray_here)
    monkeypatch.setattr(made, "revive", lambda error: log.clear())
    made.send_weights = str
    plain, deaths = made._process_response_into_experience, []

    def dies_once(response, **settings):
        if not deaths:
            deaths.append(response)
            raise ActorDiedError
        return plain(response, **settings)

    other, log_of_other = generator(ray_here)
    for generate in ("generate_samples", "generate_eval_samples"):
        monkeypatch.setattr(made, "_process_response_into_experience", dies_once)
        deaths.clear()
        for one, its_log in ((made, log), (other, log_of_other)):
            its_log.clear()
            getattr(one, generate)(n_samples_per_prompt=4)
        assert len(deaths) == 1
        assert asked(log) == asked(log_of_other), generate


def test_engines_are_held_until_all_their_requests_arrive(ray_here):
    made, log = generator(ray_here)
    made.generate_samples()
    assert log[:ENGINES] == ["hold"] * ENGINES
    assert log[-ENGINES:] == [("release", 2 * 4)] * ENGINES


def test_engines_are_released_when_sending_fails(ray_here, monkeypatch):
    made, log = generator(ray_here)
    engines = made.vllm_engines
    monkeypatch.setattr(engines[0].generate_responses, "remote", None)
    with pytest.raises(TypeError):
        made.generate_samples()
    assert made.vllm_engines == engines
    assert [entry[0] for entry in log if entry != "hold"][-ENGINES:] == ["release"] * ENGINES


def test_without_determinism_no_seed_is_set(ray_here):
    made, log = generator(ray_here, "--train.full_determinism_enable", "false")
    for engine in made.vllm_engines:
        plain = engine.generate_responses.remote
        engine.generate_responses.remote = lambda plain=plain, **request: plain(**request)
    with pytest.raises(KeyError):  # the stand-in returns a seed although none was set
        made.generate_samples()
    assert {seed for _, seed in asked(log)} == {None}


def test_seeds_of_the_samples_of_a_prompt_differ():
    from openrlhf_ktae.trainer.ppo_utils.seeded_sampling import derived_seed

    assert len({derived_seed(5, number) for number in range(100)}) == 100
    assert derived_seed(1, "train", 12) != derived_seed(1, "train1", 2)
    assert derived_seed(5, 3) == derived_seed(5, 3)
