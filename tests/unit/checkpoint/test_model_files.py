"""Weights are saved even if a model's other files cannot be; invalid generation configurations are repaired."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.checkpoint.model_files import SavedInPart, always_save_weights, make_savable, require_all

REPAIRED = [
    ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
    ({"temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
    ({"do_sample": False, "top_k": 20}, {"do_sample": True, "top_k": 20}),
    ({"do_sample": False, "typical_p": 0.5, "min_p": 0.1}, {"do_sample": True, "min_p": 0.1}),
    ({"num_beams": 1, "early_stopping": True}, {"eos_token_id": 1}),
    ({"num_beams": 1, "length_penalty": 2.0}, {"eos_token_id": 1}),
    ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
    ({}, {}),
]


@pytest.mark.parametrize(("given", "kept"), REPAIRED, ids=[json.dumps(case[0]) for case in REPAIRED])
def test_a_loaded_generation_config_can_be_saved(given, kept, tmp_path):
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps({**given, "eos_token_id": 1, "pad_token_id": 0}))
    config = GenerationConfig.from_pretrained(tmp_path)
    refused = refuses(config, tmp_path)
    note = make_savable(config)
    assert bool(note) == refused, note
    config.save_pretrained(tmp_path / "saved")
    read = GenerationConfig.from_pretrained(tmp_path / "saved")
    for name, value in {**kept, "eos_token_id": 1, "pad_token_id": 0}.items():
        assert getattr(read, name) == value


def refuses(config, folder):
    try:
        config.save_pretrained(folder / "tried")
    except ValueError:
        return True
    return False


@pytest.fixture
def save(host, monkeypatch, root):
    """Save the quickstart's model with the host's code below our wrapper, in one process."""
    from openrlhf.utils.deepspeed import DeepspeedStrategy
    from openrlhf.utils.deepspeed import deepspeed as module
    from transformers import AutoModelForCausalLM, AutoTokenizer

    waited = []
    monkeypatch.setattr(module, "torch_dist_barrier_and_cuda_sync", lambda: waited.append(True))
    strategy = DeepspeedStrategy.__new__(DeepspeedStrategy)
    strategy.args = SimpleNamespace(ds=SimpleNamespace(zero_stage=2, tensor_parallel_size=1))
    strategy.is_rank_0 = lambda: True
    path = root / "examples/quickstart/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def call(folder, change=lambda model, tokenizer: None):
        change(model, tokenizer)
        with always_save_weights(strategy) as failed:
            strategy.save_model(model, tokenizer, str(folder))
        assert waited, "the barrier for other ranks was skipped"
        assert "save_pretrained" not in vars(model)
        loaded = AutoModelForCausalLM.from_pretrained(folder if (folder / "config.json").exists() else path)
        again = AutoModelForCausalLM.from_pretrained(folder, config=loaded.config).state_dict()
        assert all(torch.equal(again[name], value) for name, value in state.items())
        return failed

    return call


def raising(text):
    def fail(*_, **__):
        raise ValueError(text)

    return fail


def test_a_model_with_an_invalid_generation_config_is_saved_completely(save, tmp_path):
    def greedy(model, tokenizer):
        model.generation_config.do_sample, model.generation_config.temperature = False, 0.6

    assert save(tmp_path, greedy) == []
    assert json.loads((tmp_path / "generation_config.json").read_text())["do_sample"] is True
    assert (tmp_path / "tokenizer.json").is_file()


@pytest.mark.parametrize("what", ["tokenizer", "configuration", "both"])
def test_weights_are_saved_and_missing_files_are_named(what, save, tmp_path, monkeypatch):
    def broken(model, tokenizer):
        if what != "configuration":
            monkeypatch.setattr(type(tokenizer), "save_pretrained", raising("a vocabulary of another kind"))
        if what != "tokenizer":
            monkeypatch.setattr(type(model.config), "save_pretrained", raising("a value of another kind"))

    failed = save(tmp_path, broken)
    with pytest.raises(SavedInPart) as error:
        require_all(failed, tmp_path)
    text = str(error.value)
    assert text.startswith(f"the weights are in {tmp_path}; not saved with them: ")
    assert ("tokenizer (ValueError: a vocabulary" in text) == (what != "configuration")
    assert ("configuration (ValueError: a value" in text) == (what != "tokenizer")
    assert "disk" not in text.split("not saved")[1]


def test_a_full_disk_is_still_an_error(save, tmp_path, files_up_to):
    with files_up_to(100_000), pytest.raises(Exception, match=r"large|space|os error"):
        save(tmp_path)
