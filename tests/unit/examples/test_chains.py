"""The chains tasks: labels, effects of the knobs, states read from ids, and the oracle worked by hand."""

import json
import random

import pytest
import torch

from openrlhf_ktae.credit import CreditBatch, load_estimator, wrong_with


@pytest.fixture(scope="module")
def task(load_example):
    return load_example("chains/make_task.py")


@pytest.fixture(scope="module")
def oracle(examples):
    return load_estimator(examples / "chains/oracle.py")


def ids_of(task, text):
    return [
        1 if word == "<eos>" else task.FIRST_IDS[0] + [w.strip() for w in task.WORDS].index(word)
        for word in text.split()
    ]


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_labels_are_evaluated_and_a_seed_gives_the_same_bytes(task, tmp_path, steps):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        task.write_task(tmp_path / name, steps, seed, 60, 20)
    written = [(tmp_path / name / "train.jsonl").read_bytes() for name in "abc"]
    assert written[0] == written[1] != written[2]
    rows = [
        json.loads(line)
        for part in ("train", "heldout")
        for line in (tmp_path / "a" / f"{part}.jsonl").read_text().splitlines()
    ]
    assert len({row["input"] for row in rows}) == 80
    for row in rows:
        start, *operands = row["input"].split()[1:-1]
        assert len(operands) == len(set(operands)) == steps
        assert row["label"] == str((int(start) + sum(map(int, operands))) % 12)


@pytest.mark.parametrize("filler", [0.0, 0.5, 0.9])
def test_filler_is_the_share_of_the_chains_words(task, filler):
    knobs, rng = task.Knobs(steps=6, filler=filler), random.Random(0)
    traces = [task.teacher_trace(task.draw_problem(6, rng), knobs, 1.0, rng).split()[:-4] for _ in range(300)]
    words = [word for trace in traces for word in trace]
    assert sum(word in task.FILLERS for word in words) / len(words) == pytest.approx(filler, abs=0.02)


@pytest.mark.parametrize("ways", [1, 4, 11])
def test_kinds_of_errors_and_share_of_right_steps(task, ways):
    knobs, rng = task.Knobs(steps=1, filler=0.0, ways=ways), random.Random(0)
    off = []
    for _ in range(2000):
        problem = task.draw_problem(1, rng)
        off.append((int(task.teacher_trace(problem, knobs, 0.7, rng).split()[1]) - problem.results[0]) % 12)
    assert off.count(0) / 2000 == pytest.approx(0.7, abs=0.04)
    assert len(set(off) - {0}) == ways


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 13}, {"filler": 1.0}, {"ways": 12}, {"accuracy": 0.0}])
def test_an_option_out_of_range_is_refused_by_name(task, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        task.Knobs(**bad)


@pytest.mark.parametrize(
    ("response", "states"),
    [
        ("+3 10 hmm +15 1 so \\boxed{ 1 }", "0+ 1+ 1+ 1+ 2+ 2+ 2+ 3+ 3+"),
        ("+3 11 +15 2 so \\boxed{ 2 }", "0+ 1- 1- 2- 2- 2- 3- 3-"),
        ("+3 11 +15 1 so \\boxed{ 1 }", "0+ 1- 1- 2+ 2+ 2+ 3+ 3+"),  # a second error undoes the first
        ("+15 10", "0- 1-"),  # not the next operand
        ("+3 10 so \\boxed{ 10 }", "0+ 1+ 1- 1- 2- 2-"),  # ends early
        ("10 +15 1", "1- 1- 2+"),
    ],
)
def test_state_after_each_word(task, response, states):
    problem = task.read_problem("7 +3 +15 :".split())
    assert problem.results == [10, 1]
    found = [f"{done}{'+' if right else '-'}" for done, right in task.on_track(response.split(), problem)]
    assert found == states.split()


def test_the_last_state_agrees_with_the_judge(task):
    knobs, rng = task.Knobs(steps=4, ways=2), random.Random(0)
    for _ in range(300):
        problem = task.draw_problem(4, rng)
        words = task.teacher_trace(problem, knobs, 0.8, rng).split()
        *_, (done, right) = task.on_track(words, problem)
        assert (done, float(right)) == (5, task.judge(words, str(problem.results[-1])))


def test_ids_match_the_tokenizer(task, load_example):
    tokenizer = load_example("chains/make_model.py").make_tokenizer()
    text = "compute 7 +3 +15 : +3 10 hmm +15 1 so \\boxed{ 1 }"
    assert tokenizer.encode(text) == ids_of(task, text)
    assert task.words_of(ids_of(task, text)) == text.split()


def test_oracle_by_hand(task, oracle):
    """Three rollouts of one prompt: right, wrong in the first step, wrong in the second; V(start) is 1/3."""
    prompt = "compute 7 +3 +15 :"
    texts = [
        "+3 10 hmm +15 1 so \\boxed{ 1 } <eos>",
        "+3 11 +15 2 so \\boxed{ 2 } <eos>",
        "+3 10 +15 2 so \\boxed{ 2 } <eos>",
    ]
    rows = [ids_of(task, f"{prompt} {text}") for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = ids != 0
    mask[:, : len(prompt.split())] = False
    base = torch.tensor([2 / 3, -1 / 3, -1 / 3])  # scores minus their mean, so the scale is 1
    batch = CreditBatch.from_tables(ids, mask, torch.tensor([1.0, 0, 0]), torch.zeros(3), base)
    wanted = batch.on_tokens(batch.base_N + oracle(batch).added_N).view(3, -1)[:, len(prompt.split()) :]
    expected = [
        [0, 1 / 6, 0, 0, 1 / 2, 0, 0, 0, 0, 0],  # two are right after the first step, one of them at the end
        [0, -1 / 3, 0, 0, 0, 0, 0, 0, 0],
        [0, 1 / 6, 0, -1 / 2, 0, 0, 0, 0, 0],
    ]
    for row, one in zip(wanted, expected, strict=True):
        assert row[: len(one)].tolist() == pytest.approx(one, abs=1e-6)
        assert not row[len(one) :].any()


def test_the_oracle_is_accepted_and_gives_other_texts_no_credit(oracle):
    assert not wrong_with(oracle)
    batch = CreditBatch.from_tables([[5, 6, 7]], [[0, 1, 1]], [1.0], [0], [0.5])
    assert not oracle(batch).added_N.any()


def test_weighted_oracle_is_the_oracle_times_probability(oracle, examples, task):
    weighted = load_estimator(examples / "chains/oracle_weighted.py")
    assert not wrong_with(weighted)
    prompt, answers = "compute 7 +3 :", ("+3 10 so \\boxed{ 10 } <eos>", "+3 11 so \\boxed{ 11 } <eos>")
    ids = torch.tensor([ids_of(task, f"{prompt} {answer}") for answer in answers])
    mask = torch.arange(ids.shape[1]).expand_as(ids) >= 4
    log_probs = torch.linspace(-3, -0.1, ids.numel()).view_as(ids)
    batch = CreditBatch.from_tables(
        ids, mask, torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([1.0, -1.0]), log_probs=log_probs
    )
    bare, found = (batch.on_tokens(batch.base_N + one(batch).added_N) for one in (oracle, weighted))
    assert torch.allclose(found, bare * log_probs.flatten().exp(), atol=1e-6)
    assert bare.abs().sum() > 1


@pytest.fixture
def pretrained(load_example, tmp_path):
    """A tiny model and its tokenizer, saved in `tmp_path`."""
    tiny = load_example("tiny_models.py")
    tokenizer = tiny.make_tokenizer((), 64)
    model = tiny.make_untrained_model(tokenizer, 32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return model, tokenizer


def test_words_become_tokens_of_a_pretrained_model(load_example, task, tmp_path, pretrained):
    old, before = pretrained
    model, tokenizer = load_example("chains/make_model.py").with_words(tmp_path)
    text = "compute 7 +15 +1 : +15 10 hmm"
    ids = tokenizer.encode(text)
    assert task.words_of(ids) == text.split()
    assert model.get_input_embeddings().num_embeddings % 64 == 0
    row = model.get_input_embeddings().weight[ids[2]]
    torch.testing.assert_close(row, old.get_input_embeddings().weight[before.encode(" +15")].mean(0))
    assert model(torch.tensor([ids])).logits.shape[1] == len(ids)


def test_a_pretrained_model_is_taught_until_it_is_right_enough(load_example, task, tmp_path, pretrained, monkeypatch):
    make, seen = load_example("chains/make_model.py"), []

    def trace(problem, knobs, *rest):
        seen.append(knobs.filler)
        return task.teacher_trace(problem, knobs, *rest)

    monkeypatch.setattr(make, "teacher_trace", trace)
    monkeypatch.setattr(make, "accuracy", lambda *_: 0.5 * len(seen) / 40)
    teaching = make.Teaching(learning_rate=1e-3, batch_size=4, warm_up=2, ramp=4, most=20, every=5)
    model, _, measured = make.make_model(task.Knobs(steps=2), 0, teaching, tmp_path)
    assert seen[::4] == [0, 0, 0.125, 0.25, 0.375, *[0.5] * 5], (
        "fillers rise, and teaching ends at the second measurement"
    )
    assert measured == 0.5
    assert not torch.equal(model.state_dict()["model.norm.weight"], pretrained[0].state_dict()["model.norm.weight"])
