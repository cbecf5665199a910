"""Dynamic sampling in the host's loop, with a real prompt loader and engines that answer from a table."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.cli.options import parse_command_line

N = 4  # rollouts per prompt
BATCH = 4  # prompts per step
WORDS = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    f"--advantage_estimator ktae --n_samples_per_prompt {N} --rollout_batch_size {BATCH} --train_batch_size 8 "
    "--init_kl_coef 0 --dynamic_filtering --max_len 32"
)
MIXED, SOLVED, HOPELESS = [1.0, 0.0, 1.0, 0.0], [1.0] * N, [0.0] * N


class Engine:
    """Answers like the host's rollout actor; `scores[prompt]` holds the scores, or a function of the call's number."""

    def __init__(self, ray, scores, empty=()):
        self.asked = []

        def answer(prompt, label, num_samples, **_):
            self.asked.append(prompt)
            values = scores[prompt]
            values = values(self.asked.count(prompt)) if callable(values) else values
            assert num_samples == len(values) == N
            return ray.put(
                [response(prompt, label, value, acts=(prompt, i) not in empty) for i, value in enumerate(values)]
            )

        self.generate_responses = SimpleNamespace(remote=answer)
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))


def response(prompt, label, score, acts):
    return {
        "prompt": prompt,
        "label": label,
        "observation_tokens": [5, 6, 7, 1],
        "action_ranges": [(2, 4)] if acts else [],
        "reward": score,
        "scores": score,
        "rollout_log_probs": None,
    }


def generator(ray, scores, *words, empty=()):
    from torch.utils.data import DataLoader

    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    args = parse_command_line([*WORDS.split(), *words])
    rows = [("default", prompt, "label", None) for prompt in scores]
    loader = DataLoader(
        rows, batch_size=1, collate_fn=lambda batch: tuple(list(column) for column in zip(*batch, strict=True))
    )
    engine = Engine(ray, scores, empty)
    made = KTAESamplesGenerator(SimpleNamespace(args=args), loader, None, None, [engine])
    return made, engine


def prompts(batch):
    return [rollout.prompts[0] for rollout in batch]


def drain(made, limit=50):
    steps = []
    for _ in range(limit):
        batch, rate, drawn, exhausted = made.generate_samples()
        steps.append((batch, rate, drawn))
        if exhausted:
            return steps
    raise AssertionError("the episode does not end")


def table(*kinds):
    return {f"p{i}": kind for i, kind in enumerate(kinds)}


def test_the_batch_is_filled_with_complete_groups(ray_here):
    kinds = [HOPELESS, MIXED, SOLVED, MIXED] * 8
    made, _ = generator(ray_here, table(*kinds))
    batch, rate, drawn, exhausted = made.generate_samples()
    assert len(batch) == BATCH * N
    assert not exhausted
    assert drawn % 1 == 0
    assert drawn >= 8
    texts = prompts(batch)
    for start in range(0, len(texts), N):
        assert len(set(texts[start : start + N])) == 1
        assert int(texts[start][1:]) % 2 == 1, "only prompts with mixed scores"
    assert rate == pytest.approx(50, abs=20)
    metrics = batch.metrics
    assert metrics["dynamic_sampling/prompts_drawn"] == drawn
    assert metrics["dynamic_sampling/pass_rate"] == pytest.approx(0.5, abs=0.15)
    assert metrics["dynamic_sampling/solved_share"] + metrics["dynamic_sampling/hopeless_share"] == pytest.approx(
        1 - metrics["dynamic_sampling/kept_share"]
    )


def test_every_prompt_is_drawn_once_and_every_mixed_group_is_trained_on(ray_here):
    """Surplus groups wait for the next step; none may be lost or used twice."""
    kinds = [MIXED if i % 3 else HOPELESS for i in range(48)]
    made, engine = generator(ray_here, table(*kinds))
    steps = drain(made)
    trained = [text for batch, _, _ in steps for text in prompts(batch)]
    mixed = [f"p{i}" for i in range(48) if i % 3]
    assert sorted(trained) == sorted(mixed * N)
    assert sorted(engine.asked) == sorted(table(*kinds))
    assert sum(drawn for _, _, drawn in steps) == 48
    assert all(len(batch) == BATCH * N for batch, _, _ in steps[:-1])


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([-1.0, -1.0, -1.0, 1.0], True),  # the mean, -0.5, is outside the host's default range
        ([-1.0, -1.0, 1.0, 1.0], True),
        ([-1.0] * N, False),
        ([0.3, 0.3, 0.3, 0.7], True),
        ([0.5] * N, False),  # the mean, 0.5, is inside the host's default range
        ([-3.0, -2.5, -2.0, -2.0], True),
        ([math.nan, 1.0, 0.0, math.nan], True),
        ([math.nan, 1.0, 1.0, 1.0], False),
        ([math.nan] * N, False),
    ],
)
def test_groups_are_kept_by_the_spread_of_raw_scores(ray_here, scores, kept):
    made, _ = generator(ray_here, table(scores, *[MIXED] * 7))
    trained = {text for batch, _, _ in drain(made) for text in prompts(batch)}
    assert ("p0" in trained) == kept


def test_a_given_score_range_is_applied(ray_here):
    easy, hard = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    made, _ = generator(ray_here, table(*[easy, hard] * 8), "--dynamic_filtering_reward_range", "0.1", "0.6")
    trained = {text for batch, _, _ in drain(made) for text in prompts(batch)}
    assert trained == {f"p{i}" for i in range(1, 16, 2)}


def test_a_rollout_without_action_is_ignored(ray_here):
    made, _ = generator(ray_here, table([1.0, 0.0, 0.0, 0.0], *[MIXED] * 8), empty={("p0", 0)})
    trained = {text for batch, _, _ in drain(made) for text in prompts(batch)}
    assert "p0" not in trained


def test_without_filtered_groups_each_wave_is_a_batch(ray_here):
    made, _ = generator(ray_here, table(*[MIXED] * 12))
    steps = drain(made)
    assert [len(batch) for batch, _, _ in steps if batch] == [BATCH * N] * 3
    assert [rate for batch, rate, _ in steps if batch] == [100.0] * 3
    assert all(batch.metrics["dynamic_sampling/waves"] == 1 for batch, _, _ in steps if batch)


@pytest.mark.parametrize(("kind", "advice"), [(HOPELESS, "easier prompts"), (SOLVED, "harder prompts")])
def test_if_all_groups_are_filtered_it_stops_at_the_cap(ray_here, kind, advice):
    made, engine = generator(ray_here, table(*[kind] * 400), "--algo.dynamic_filtering_max_gen_batches", "3")
    with pytest.raises(TrainingStopped) as stop:
        made.generate_samples()
    assert len(engine.asked) == 3 * BATCH
    for text in ("--algo.dynamic_filtering_max_gen_batches 3 is reached", "Prompts drawn: 12", ": 12", advice):
        assert text in str(stop.value)


def test_if_all_groups_are_filtered_it_stops_when_the_data_run_out(ray_here):
    made, engine = generator(ray_here, table(*[SOLVED] * 20), "--algo.dynamic_filtering_max_gen_batches", "0")
    with pytest.raises(TrainingStopped, match=r"the data ran out with 0 groups.*1: 20"):
        made.generate_samples()
    assert len(engine.asked) == 20


def test_a_stop_over_unknown_scores_says_so(ray_here):
    made, _ = generator(ray_here, table(*[[math.nan] * N] * 100))
    with pytest.raises(TrainingStopped, match=r"unknown: 40\. Most rollouts have no score"):
        made.generate_samples()


def test_fewer_groups_than_a_step_needs(ray_here):
    made, _ = generator(ray_here, table(MIXED))
    with pytest.raises(TrainingStopped, match="with 1 groups whose scores differ; the smallest step takes 2"):
        made.generate_samples()


def test_a_smaller_batch_at_the_cap_if_it_divides(ray_here):
    """--train.batch_size 8 is 2 groups, so of 3 groups found, 2 are trained on and 1 waits."""
    kinds = [MIXED] * 3 + [HOPELESS] * 9 + [MIXED] * 20
    made, _ = generator(ray_here, table(*kinds), "--algo.dynamic_filtering_max_gen_batches", "1")
    made._expected_share = 1.0
    made.filtering = type(made.filtering)(dynamic_filtering_max_gen_batches=3)
    first, *_ = made.generate_samples()
    assert len(first) == 2 * N
    assert first.metrics["dynamic_sampling/surplus_groups"] == 1
    second, *_ = made.generate_samples()
    assert len(second) == BATCH * N
    assert {"p0", "p1", "p2"} == {*prompts(first), prompts(second)[0]}


def test_a_short_last_batch_waits_for_the_next_episode(ray_here):
    made, _ = generator(ray_here, table(*[MIXED] * 5), "--num_episodes", "2")
    first = [text for batch, _, _ in drain(made) for text in prompts(batch)]
    assert len(first) == 4 * N
    assert made.left_over == N
    second = [text for batch, _, _ in drain(made) for text in prompts(batch)]
    assert second[:N] == ["p4"] * N
    assert len(second) == 6 * N
    assert made.left_over == 0


def test_prompts_solved_k_times_in_a_row_are_left_out(ray_here):
    kinds = table(SOLVED, *[MIXED] * 8)
    made, engine = generator(ray_here, kinds, "--algo.dynamic_filtering_skip_solved", "2", "--num_episodes", "4")
    seen = []
    for _ in range(4):
        seen += [batch for batch, _, _ in drain(made)]
    assert engine.asked.count("p0") == 2
    assert engine.asked.count("p1") == 4
    assert sum(batch.metrics.get("dynamic_sampling/prompts_skipped", 0) for batch in seen) == 2
    assert made.prompts_seen == 4 * 9


def test_a_broken_streak_restarts_its_count(ray_here):
    wavering = table(lambda call: MIXED if call == 2 else SOLVED, *[MIXED] * 8)
    made, engine = generator(ray_here, wavering, "--algo.dynamic_filtering_skip_solved", "2", "--num_episodes", "6")
    for _ in range(6):
        drain(made)
    assert engine.asked.count("p0") == 4  # solved, mixed, solved, solved, then skipped


def test_the_ledger_continues_after_a_restart(ray_here):
    from openrlhf_ktae.trainer.ppo_utils.dynamic_sampling import prompt_key

    kinds = table(SOLVED, *[MIXED] * 8)
    words = ("--algo.dynamic_filtering_skip_solved", "1", "--num_episodes", "2")
    made, _ = generator(ray_here, kinds, *words)
    drain(made)
    saved = made.position()
    for prompt, pass_rate in (("p0", 1.0), ("p1", 0.5)):
        known, correct, _ = saved["pass_rates"][prompt_key(prompt, "label")]
        assert correct / known == pass_rate
    again, engine = generator(ray_here, kinds, *words)
    again.load_position(saved)
    steps = drain(again)
    assert "p0" not in engine.asked
    assert steps[0][0].progress == pytest.approx(9 / 18)


def test_a_stop_reports_prompts_skipped_as_solved(ray_here):
    made, _ = generator(ray_here, table(*[MIXED] * 2, *[SOLVED] * 6), "--algo.dynamic_filtering_skip_solved", "1")
    drain(made)
    made._pass_rates = {key: (known, correct, 1) for key, (known, correct, _) in made._pass_rates.items()}
    with pytest.raises(TrainingStopped, match="8 skipped as solved"):
        made.generate_samples()


def test_progress_and_metrics_travel_with_the_batch(ray_here):
    import pickle

    made, _ = generator(ray_here, table(*[MIXED] * 8))
    made.generate_samples()
    batch, *_ = made.generate_samples()
    copy = pickle.loads(pickle.dumps(batch))
    assert (copy.metrics, copy.progress) == (batch.metrics, 0.5)


def test_without_the_option_the_host_is_unchanged(ray_here):
    made, _ = generator(ray_here, table(HOPELESS, SOLVED, MIXED, MIXED), "--dynamic_filtering", "false")
    batch, rate, drawn, exhausted = made.generate_samples()
    assert type(batch) is list
    assert (len(batch), rate, drawn) == (4 * N, None, 4)
    assert not exhausted


@pytest.mark.parametrize("name", ["dynamic_filtering_max_gen_batches", "dynamic_filtering_skip_solved"])
def test_limits_below_zero_are_refused(name):
    from openrlhf_ktae.base.errors import BadOption

    with pytest.raises(BadOption, match=f"--algo.{name} -1: give a number at least 0"):
        parse_command_line([*WORDS.split(), f"--algo.{name}", "-1"])
