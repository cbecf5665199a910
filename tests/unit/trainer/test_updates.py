"""The update loops of policy and critic skip non-finite updates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from small_engines import initialized, weights

from openrlhf_ktae.cli.options import parse_command_line

WORDS = (
    "--pretrain examples/quickstart/model --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 "
    "--label_key label --advantage_estimator ktae --n_samples_per_prompt 4"
)


@pytest.fixture
def engine(group):
    """A model in fp32 with ZeRO-3, for which DeepSpeed checks nothing by default."""
    torch.manual_seed(0)
    return initialized(torch.nn.Linear(4, 1), 3)


def updates(made, factors):
    """Stand-in for the host's loop over a batch: one update per factor of the loss."""
    for factor in factors:
        made.backward(made(torch.ones(1, 4)).sum() * factor)
        made.step()
    return {"loss": 0.0}


@pytest.fixture
def loops(engine, root, monkeypatch):
    """Build each model's update loop around the engine as its actor does."""
    from openrlhf.trainer.ray import ppo_actor, ppo_critic

    from openrlhf_ktae.trainer.nonfinite import CRITIC_SKIPPED, SKIPPED
    from openrlhf_ktae.trainer.ray.ppo_actor import KTAEActorPPOTrainer
    from openrlhf_ktae.trainer.ray.ppo_critic import KTAECriticPPOTrainer

    monkeypatch.chdir(root)
    strategy = SimpleNamespace(args=parse_command_line(WORDS.split()))
    factors = []
    monkeypatch.setattr(ppo_actor.ActorPPOTrainer, "ppo_train", lambda self, kl_ctl: updates(engine, factors))
    monkeypatch.setattr(ppo_critic.CriticPPOTrainer, "ppo_train", lambda self: updates(engine, factors))

    def policy():
        loop = KTAEActorPPOTrainer(strategy, SimpleNamespace(model=engine), None, None, None)
        return lambda: loop.ppo_train(0.0), SKIPPED

    def critic():
        loop = KTAECriticPPOTrainer(
            strategy, engine, critic_optim=None, critic_scheduler=None, micro_train_batch_size=1
        )
        return loop.ppo_train, CRITIC_SKIPPED

    return factors, {"policy": policy, "critic": critic}


@pytest.mark.parametrize("model", ["policy", "critic"])
def test_both_models_skip_and_count_non_finite_updates(model, engine, loops):
    factors, makers = loops
    train, key = makers[model]()
    before = weights(engine)
    factors[:] = [float("nan"), float("inf")]
    assert train() == {"loss": 0.0, key: 2.0}
    assert torch.equal(weights(engine), before)
    factors[:] = [1.0]
    assert train() == {"loss": 0.0, key: 0.0}
    assert not torch.equal(weights(engine), before)


@pytest.mark.parametrize("model", ["Actor", "Critic"])
def test_the_host_builds_our_update_loop(model, host, monkeypatch):
    """The host looks up its loop as a module global, which our actor replaces before loading the model."""
    import importlib

    names = {"Actor": "Policy", "Critic": "Critic"}
    theirs = importlib.import_module(f"openrlhf.trainer.ray.ppo_{model.lower()}")
    ours = importlib.import_module(f"openrlhf_ktae.trainer.ray.ppo_{model.lower()}")
    actor = getattr(ours, f"KTAE{names[model]}ModelActor")
    loop = getattr(ours, f"KTAE{model}PPOTrainer")
    monkeypatch.setattr(theirs, f"{model}PPOTrainer", None)
    found = []
    parent = actor.__mro__[1]
    monkeypatch.setattr(
        parent, "init_model_from_pretrained", lambda *_: found.append(getattr(theirs, f"{model}PPOTrainer"))
    )
    actor.init_model_from_pretrained(actor.__new__(actor), None)
    assert found == [loop]
