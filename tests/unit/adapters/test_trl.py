"""The TRL adapter in real training of the quickstart's model; needs trl installed (see docs/ktae.md)."""

import json

import pytest
import torch

trl = pytest.importorskip(
    "trl", reason="trl is absent: install trl==1.16.0 in an environment of its own (docs/ktae.md)"
)

from openrlhf_ktae.adapters.trl import OF_PASS, KTAEGRPOTrainer  # noqa: E402
from openrlhf_ktae.credit import TokenCredit, estimators  # noqa: E402
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values  # noqa: E402

N = 4


@pytest.fixture(scope="module")
def parts(root):
    from datasets import Dataset
    from transformers import AutoTokenizer

    folder = root / "examples/quickstart"
    lines = (folder / "data/heldout.jsonl").read_text().splitlines()[:16]
    rows = [json.loads(line) for line in lines]
    data = Dataset.from_list([{"prompt": row["input"], "label": str(row["label"])} for row in rows])
    return folder / "model", AutoTokenizer.from_pretrained(folder / "model"), data


def correct(completions, label, **_):
    """The verifier's reward: 1 if the label is in the box."""
    return [float(f"{{ {wanted} }}" in text) for text, wanted in zip(completions, label, strict=True)]


def short(completions, **_):
    """A reward that does not depend on correctness."""
    return [-0.01 * len(text) for text in completions]


def trainer(parts, kind, tmp_path, rewards=(correct, short), options=None, **more):
    from transformers import AutoModelForCausalLM

    model, tokenizer, data = parts
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "num_generations": N, "max_steps": 2,
        "max_completion_length": 24, "learning_rate": 1e-3, "use_cpu": True, "bf16": False, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "seed": 3, "gradient_accumulation_steps": 2, "disable_tqdm": True,
    }  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    made = kind(
        model=loaded, reward_funcs=list(rewards), args=trl.GRPOConfig(**settings | (options or {})),
        train_dataset=data, processing_class=tokenizer, **more,
    )  # fmt: skip
    batches = []
    score = made._generate_and_score_completions
    made._generate_and_score_completions = lambda inputs: batches.append(score(inputs)) or batches[-1]
    made.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in loaded.parameters()])
    return made, batches, weights


@pytest.fixture(scope="module")
def plain(parts, tmp_path_factory):
    return trainer(parts, trl.GRPOTrainer, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def credited(parts, tmp_path_factory):
    return trainer(parts, KTAEGRPOTrainer, tmp_path_factory.mktemp("ktae"))


def test_the_first_batch_has_the_host_advantages_plus_k(plain, credited, parts):
    host, ours = plain[1][0], credited[1][0]
    assert torch.equal(host["completion_ids"], ours["completion_ids"])
    ids, mask = ours["completion_ids"], ours["completion_mask"]
    tokenizer = parts[1]
    labels = {row["prompt"]: row["label"] for row in parts[2]}
    prompts = tokenizer.batch_decode(ours["prompt_ids"], skip_special_tokens=True)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    wanted = [next(label for prompt, label in labels.items() if prompt.strip() == p.strip()) for p in prompts]
    scores = torch.tensor(correct(texts, wanted))
    assert 0 < scores.sum() < len(scores)
    groups = torch.tensor([sorted(set(prompts)).index(prompt) for prompt in prompts])
    values = compute_key_token_values(ids, mask, scores, groups, None, tokenizer.all_special_ids)
    assert values.any()
    assert torch.equal(ours["advantages"], host["advantages"][:, None] + values)


def test_training_changes_and_logs(plain, credited):
    assert not torch.equal(plain[2], credited[2])
    assert torch.isfinite(credited[2]).all()
    assert all(0 <= line["ktae/mixed_group_share"] <= 1 for line in credited[0].state.log_history if "loss" in line)


def test_weight_zero_trains_the_same_parameters_bit_for_bit(plain, parts, tmp_path):
    _, _, weights = trainer(parts, KTAEGRPOTrainer, tmp_path, ktae=KTAEConfig(weight=0.0))
    assert torch.equal(weights, plain[2])


def test_the_chosen_reward_function_decides_on_correctness(credited, parts, tmp_path):
    _, batches, _ = trainer(parts, KTAEGRPOTrainer, tmp_path, (short, correct), {"max_steps": 1}, verifier=1)
    assert torch.equal(batches[0]["completion_ids"], credited[1][0]["completion_ids"])
    torch.testing.assert_close(batches[0]["advantages"], credited[1][0]["advantages"])
    _, other, _ = trainer(parts, KTAEGRPOTrainer, tmp_path, (short, correct), {"max_steps": 1}, verifier=0)
    k = other[0]["advantages"] - other[0]["advantages"].gather(1, other[0]["completion_mask"].sum(1, keepdim=True) - 1)
    assert not k[other[0]["completion_mask"].bool()].any(), "no reward is above 0, so no completion is correct"


def values(prompt, response):
    """Return values that differ by prompt and prefix; one token has none."""
    return [(sum(prompt) + sum(response[: t + 1])) % 7 / 7 if t != 1 else float("nan") for t in range(len(response))]


@pytest.mark.parametrize("name", estimators())
def test_estimators_get_figures_of_the_policy_before_its_update(name, parts, tmp_path, monkeypatch):
    given, one = [], estimators()[name]
    monkeypatch.setattr(
        type(one), "__call__", lambda self, batch, _: given.append(batch) or TokenCredit(batch.base_N * 0)
    )
    settings = {"temperature": 0.7, "max_steps": 1}
    made, (output,), _ = trainer(parts, KTAEGRPOTrainer, tmp_path, options=settings, estimator=name, values=values)
    batch = given[0]
    monkeypatch.undo()
    assert torch.isfinite(one(batch, made.options).added_N).all()
    assert (made.options is made.ktae) == (one.options is KTAEConfig)
    model = type(made.model).from_pretrained(parts[0], dtype=torch.float32)
    ids, mask = (torch.cat([output[f"prompt_{what}"], output[f"completion_{what}"]], dim=1) for what in ("ids", "mask"))
    kept = output["completion_ids"].size(1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits[:, -kept - 1 : -1].double() / 0.7
    log_p = torch.log_softmax(logits, -1)
    truth = {"log_probs": log_p.gather(-1, output["completion_ids"][..., None])[..., 0]}
    truth |= {"entropies": -(log_p.exp() * log_p).sum(-1), "sum_squares": log_p.exp().square().sum(-1)}
    acted = output["completion_mask"].bool()
    if "in_prompt" in one.needs:
        found = batch.in_prompt_N.view(acted.shape)
        for row, (ids_T, seen_T) in enumerate(zip(output["prompt_ids"], output["prompt_mask"], strict=True)):
            expected = torch.isin(output["completion_ids"][row], ids_T[seen_T.bool()])
            assert torch.equal(found[row].bool() & acted[row], expected & acted[row])
        assert found[acted].any() and not found[acted].all()
    if "values" in one.needs:
        rows = zip(
            *(output[f"{of}_{what}"] for of in ("prompt", "completion") for what in ("ids", "mask")), strict=True
        )
        told = [values(prompt[seen == 1].tolist(), ids[acts == 1].tolist()) for prompt, seen, ids, acts in rows]
        expected = torch.tensor([value for row in told for value in row])
        torch.testing.assert_close(batch.values_N.view(acted.shape)[acted], expected, equal_nan=True)
    for need in OF_PASS:
        found = getattr(batch, f"{need}_N")
        assert (found is None) is (need not in one.needs)
        if found is not None:
            found = found.view(acted.shape)[acted].double()
            torch.testing.assert_close(found, truth[need][acted], atol=2e-4, rtol=0)


@pytest.mark.parametrize(("name", "why"), [("mc_value", "give a function .* as values="), ("ota", "gtpo.*otb.*tempo")])
def test_estimators_that_cannot_work_are_refused_with_a_way_out(name, why):
    with pytest.raises(ValueError, match=f"estimator={name}: .*{why}"):
        KTAEGRPOTrainer(estimator=name)
