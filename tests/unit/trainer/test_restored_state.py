"""State other than the model is restored: random states, windows, shards, the ledger of pass rates."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture
def new_generator(host):
    """Build our samples generator with given state, without an engine."""
    from openrlhf_ktae.base.faults_config import FaultsConfig
    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    def make(**state):
        made = KTAESamplesGenerator.__new__(KTAESamplesGenerator)
        made.faults, made._last_failure = FaultsConfig(max_failed_share=0.5), "the last"
        made._failures = []
        made._carried, made._sample_buffer, made._dataloader_iter = [], [], iter([])
        made._expected_share, made._batches_of_episode, made.prompts_sent = float("nan"), 0, 0
        made.batches = made.places_sent = made.prompts_seen = 0
        made._pass_rates = {}
        made.prompts_dataloader = [1, 2]
        made.__dict__.update(state)
        return made

    return make


def stored(position, tmp_path):
    """Return a position after a round trip through a file."""
    from openrlhf_ktae.trainer.ppo_utils.data_position import plain_position

    torch.save(plain_position(position), tmp_path / "position.pt")
    return torch.load(tmp_path / "position.pt", weights_only=True)


def test_a_position_does_not_copy_rollouts(new_generator):
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_ktae.trainer.ppo_utils.columns import Experiences

    waiting = Experiences([Experience(sequences=torch.zeros(1, 2))])
    generator = new_generator(_carried=waiting)
    position = generator.position()
    assert position["carried"][0] is waiting[0]
    generator._carried.clear()
    assert position["carried"], "the list is"


def test_a_generator_restores_its_shares_and_failures(new_generator, tmp_path):
    from openrlhf_ktae.base.errors import TrainingStopped
    from openrlhf_ktae.trainer.ppo_utils.failed_rollouts import FAILED, WINDOW

    first = new_generator(
        _expected_share=0.25, _batches_of_episode=3, prompts_sent=40, places_sent=7, dropped_rollouts=2
    )
    first._pass_rates, first.prompts_seen = {2**62: (8, 4, 0), 7: (4, 4, 1)}, 24
    first._failures.extend([True] * (WINDOW - 1))
    second = new_generator()
    second.load_position(stored(first.position(), tmp_path))
    assert second.position() == first.position()
    assert (second._expected_share, second._batches_of_episode, second.prompts_sent, second.places_sent) == (
        0.25,
        3,
        40,
        7,
    )
    assert (second._pass_rates, second.prompts_seen) == (first._pass_rates, 24)
    with pytest.raises(TrainingStopped, match="max_failed_share"):
        second._settle([SimpleNamespace(info={FAILED: torch.tensor([1.0])})], 1)


class Host:
    """Stand-in for the host's actor, which is not tested here."""

    def init_model_from_pretrained(self, strategy, *args):
        self.strategy = strategy

    def save_checkpoint(self, tag):
        pass


@pytest.fixture
def new_rank(host, tmp_path):
    from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor

    class Rank(CheckpointedActor, Host):
        role = "actor"

    def make(rank, resume_from=None, averaged=0):
        args = SimpleNamespace(ckpt=SimpleNamespace(path=str(tmp_path)), run=SimpleNamespace(resume_from=resume_from))
        made = Rank()
        made._rank = rank
        made.ema_model = torch.nn.Linear(2, 1)
        ema = {"ema": averaged}
        strategy = SimpleNamespace(args=args, load_ckpt=None, save_model=None, time_steps=ema)
        made.init_model_from_pretrained(strategy)
        return made

    return make


def draws():
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def test_every_rank_restores_its_own_random_states_and_average(new_rank):
    from openrlhf_ktae.checkpoint.write import staging

    expected, averages = {}, {}
    for rank in range(2):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(rank)
        made = new_rank(rank, averaged=rank + 5)
        averages[rank] = made.ema_model.weight.clone()
        made.save_checkpoint("global_step1")
        expected[rank] = draws()
    assert expected[0] != expected[1]
    folder = str(staging(made.strategy.args.ckpt.path, "global_step1"))
    for rank in range(2):
        made = new_rank(rank, resume_from=folder)
        assert draws() == expected[rank]
        assert torch.equal(made.ema_model.weight, averages[rank])
        assert made.strategy.time_steps["ema"] == rank + 5
