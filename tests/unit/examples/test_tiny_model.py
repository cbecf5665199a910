"""The shipped tiny model and its tokenizer, loaded as the stack loads them."""

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def folder(examples):
    return examples / "quickstart/model"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def heldout(examples):
    lines = (examples / "quickstart/data/heldout.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_folder_is_small_and_holds_safetensors(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors"}


def test_the_cpu_engine_supports_the_architecture(folder):
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "qwen2" and config.architectures == ["Qwen2ForCausalLM"]
    assert config.hidden_size // config.num_attention_heads >= 32
    assert config.max_position_embeddings >= 64


def test_each_number_word_and_sign_is_one_token(tokenizer):
    text = "compute 12 + 7 - 5 + 49 : 12 + 7 gives 19 , maybe - 5 gives 14 so \\boxed{ 14 }<eos>"
    pieces = [tokenizer.decode([i]).strip() for i in tokenizer.encode(text)]
    assert pieces == text.replace("<eos>", " <eos>").split()
    for number in range(100):
        assert len(tokenizer.encode(f" {number}")) == 1


def test_text_survives_the_round_trip(tokenizer, load_example):
    make_model = load_example("quickstart/make_model.py")
    rng = random.Random(3)
    for _ in range(200):
        problem = make_model.draw_problem(rng)
        text = f"{problem.prompt} {make_model.teacher_trace(problem, rng)}"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for text in ("Grüße, 123 × 4!", "a  b\n\tc", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens(tokenizer, model):
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert set(tokenizer.all_special_tokens) == {"<eos>", "<pad>"}
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size >= len(tokenizer)


def test_script_makes_the_shipped_tokenizer(load_example, folder, tmp_path):
    load_example("quickstart/make_model.py").make_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_the_teacher_forgets_carries_at_the_stated_rates(load_example):
    """Forgotten carries are rare after `carefully` and common after `maybe`, ids that KTAE can find."""
    make_model = load_example("quickstart/make_model.py")
    rng = random.Random(0)
    for mood in make_model.MOODS:
        share = sum(make_model.careless_sum(18, 7, mood, rng) == 15 for _ in range(2000)) / 2000
        assert share == pytest.approx(make_model.FORGETS_CARRY[mood], abs=0.04)


def test_eight_pretraining_steps_lower_the_loss(load_example):
    make_model = load_example("quickstart/make_model.py")
    torch.manual_seed(0)
    tokenizer = make_model.make_tokenizer()
    untrained = make_model.tiny_models.make_untrained_model(tokenizer, make_model.HIDDEN_SIZE)
    ids, labels = make_model.make_batch(tokenizer, random.Random(1), 32)
    loss_before = untrained(ids, labels=labels).loss.item()
    rng = random.Random(0)
    make_model.tiny_models.pretrain(untrained, lambda: make_model.make_batch(tokenizer, rng, 128), 8, 3e-3)
    assert untrained(ids, labels=labels).loss.item() < loss_before - 0.3


@torch.no_grad()
def test_untrained_policy_solves_a_small_share(load_example, model, tokenizer, heldout):
    """31 % with 8 samples per problem; one sample of 200 problems has a standard error of 3.3 points."""
    script = load_example("whole_algorithm.py")
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    rollouts = script.sample(model, tokenizer, heldout, 1)
    assert 0.20 <= rollouts.scores_B.mean() <= 0.42
    lengths_B = rollouts.action_BT.sum(1)
    assert 12 <= lengths_B.float().mean() <= 24
    assert (lengths_B < script.MAX_NEW_TOKENS).float().mean() >= 0.99  # nearly all responses end by themselves


@torch.no_grad()
def test_greedy_decoding_is_wrong_too(load_example, model, tokenizer, heldout):
    """30.5 %, so training must change the most likely token, not only sharpen the distribution."""
    judge = load_example("whole_algorithm.py").judge
    prompts = tokenizer([row["input"] for row in heldout], return_tensors="pt")
    answers = model.generate(**prompts, max_new_tokens=32, do_sample=False)[:, prompts.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    right = sum(judge(text, row["label"]) for text, row in zip(texts, heldout, strict=True))
    assert 0.15 <= right / len(heldout) <= 0.5
