"""LoRA on the real stack: it learns, engines generate with merged weights, and adapter and merged model are saved."""

from __future__ import annotations

import pytest
import torch
from marks import RARELY
from safetensors.torch import load_file

from openrlhf_ktae.selftest.killing import EVERYTHING, Death
from openrlhf_ktae.selftest.mortal_run import MortalRun
from openrlhf_ktae.selftest.trial import STRAIGHT, Trial

LORA = "--ds.lora.rank 16 --ds.lora.alpha 32 --actor.adam.lr 1e-3"
EVERY = 10  # steps between checkpoints


@pytest.fixture(scope="module")
def adapted(train, root, tmp_path_factory):
    """Train the quickstart with adapters on every linear layer; return the run and its engine's weight sums."""
    folder = tmp_path_factory.mktemp("lora")
    words = (
        f"{LORA} --train.agent_func_path {root}/tests/e2e/agents/checked.py --ckpt.save_steps {EVERY} --ckpt.save_hf"
    )
    run = train(folder / "run", *words.split(), KTAE_TEST_CHECKSUMS=str(folder / "sums"))
    assert run.code == 0, run.output
    return run, list(dict.fromkeys(map(float, (folder / "sums").read_text().split())))


def checksum(folder):
    return sum(float(weight.double().abs().sum()) for weight in load_file(folder / "model.safetensors").values())


@RARELY
def test_it_learns(adapted):
    """The untrained model, measured by the same engine, is the counterfactual."""
    run, _ = adapted
    before, after = run.evaluations["before"], run.evaluations["after"]
    assert after["eval_accuracy"] >= before["eval_accuracy"] + 0.15
    assert after["eval_accuracy_low"] > before["eval_accuracy_high"]


@RARELY
def test_the_engine_generates_with_the_weights_that_are_saved_merged(adapted, root):
    run, sums = adapted
    assert len(sums) == 1 + len(run.steps), "one model per step, and the initial one"
    assert sums[0] == pytest.approx(checksum(root / "examples/quickstart/model"), rel=1e-12)
    exports = sorted((run.directory / "checkpoints").glob("global_step*/*_hf"), key=lambda path: int(path.name[11:-3]))
    assert exports
    for path in exports:
        assert sums[int(path.name[11:-3])] == pytest.approx(checksum(path), rel=1e-12)
    assert sums[-1] == pytest.approx(checksum(run.directory / "model"), rel=1e-12)


@RARELY
def test_the_adapter_on_the_base_is_the_merged_model(adapted, root):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, _ = adapted
    folder = run.directory / "model"
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(root / "examples/quickstart/model", dtype=torch.float32)
    again = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in merged.state_dict().items())


@RARELY
def test_killed_and_resumed_run_ends_with_the_same_adapters(root, environment, tmp_path, monkeypatch):
    """With ZeRO-2 and a KL penalty against the base model."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = f"--config configs/grpo_ktae/quickstart.yaml {LORA} --ds.zero_stage 2 --algo.kl.init_coef 0.01"
    trial = Trial(words.split(), tmp_path, prompts=16)
    trial.finish(STRAIGHT)
    run = MortalRun(trial, "killed", start_seconds=0.0, seed=0)
    assert run.inject(Death(EVERYTHING, step=2, share=0.6))
    run.finish()
    assert run.toll.wrong == []
    assert trial.difference("killed") is None
