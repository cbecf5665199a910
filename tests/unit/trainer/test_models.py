"""A real reward model on two ranks: when one is killed, the group restarts and gives the same rewards."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from marks import SLOW

from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.base.host import undecorated
from openrlhf_ktae.cli.options import parse_command_line

pytestmark = SLOW

RANKS = 2


@pytest.fixture(scope="module")
def args(root, tmp_path_factory):
    """Options of the quickstart with a randomly initialised reward model on two ranks."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    config = AutoConfig.from_pretrained(root / "examples/quickstart/model", num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words = f"--config {root}/configs/grpo_ktae/quickstart.yaml --eval.dataset= --reward.model_name_or_path {folder}"
    words += f" --reward.num_nodes 1 --reward.num_gpus_per_node {RANKS} --train.micro_batch_size 2"
    words += " --faults.model_restarts 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        made = parse_command_line([*words.split(), "--run.dir", str(folder / "run")])
        CpuBackend().adapt(made)
    return made


@pytest.fixture(scope="module")
def ray_here(host, kept_processes, args):
    """Start a Ray whose processes are set up as in a run."""
    from openrlhf_ktae.backend.cluster import environment

    variables = {**environment(args, CpuBackend()), "OMP_NUM_THREADS": "1"}
    return kept_processes.ray(RANKS, variables, forked=True)


class Policy:
    """Stand-in for the policy's ranks; their log-probabilities are not used here."""

    def __init__(self, ray):
        self._ray = ray

    def async_run_method_batch(self, method_name, sequences, action_mask, attention_mask):
        return [self._ray.put([torch.zeros_like(mask, dtype=torch.float32) for mask in action_mask])]

    def async_run_method(self, method_name):
        return []


@pytest.fixture(scope="module")
def maker(ray_here, args):
    from openrlhf.trainer.ray.launcher import RayActorGroup, RewardModelActor
    from openrlhf.utils import get_strategy

    from openrlhf_ktae.trainer.ray.restarting_models import RevivingExperienceMaker, restartable

    strategy = get_strategy(args)
    actor_class = restartable(undecorated(RewardModelActor), args.faults.config.model_restarts)
    group = RayActorGroup(1, RANKS, actor_class)
    ray_here.get(group.async_init_model_from_pretrained(strategy, args.reward.model_name_or_path))
    return RevivingExperienceMaker(Policy(ray_here), None, group, None, None, strategy, None)


def samples(changed=None):
    from openrlhf.trainer.ppo_utils.experience import Experience

    made = []
    for seed in range(RANKS):
        ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        made.append(Experience(sequences=ids, attention_mask=mask, action_mask=mask[:, 1:], info={}))
    if changed is not None:
        made[0].sequences = changed
    return made


def test_a_group_that_lost_a_rank_is_reloaded_and_repeats_the_pass(ray_here, maker):
    from ray.exceptions import RayError

    def processes():
        return ray_here.get([rank.__ray_call__.remote(lambda self: os.getpid()) for rank in ranks])

    notes, ranks = [], maker.reward_model_group._actor_handlers
    maker.note = notes.append
    _, second = processes()
    before = [sample.rewards for sample in maker.make_experience(samples())]
    assert torch.cat(before).unique().numel() == 2 * RANKS, "rewards must differ"

    with pytest.raises(
        RayError, match="IndexError"
    ):  # a programming error, not a dead process; the other rank waits for this one
        maker.make_experience(samples(changed=torch.full((2, 6), 10**6)))
    assert maker.model_restarts == 0

    os.kill(second, signal.SIGKILL)
    after = [sample.rewards for sample in maker.make_experience(samples())]
    assert torch.equal(torch.cat(before), torch.cat(after))
    assert notes == [
        "a process of the reward model died and was restarted; its forward passes are repeated "
        "(1 of --faults.model_restarts 1)"
    ]

    os.kill(processes()[0], signal.SIGKILL)
    with pytest.raises(RayError):  # one death too many
        maker.make_experience(samples())
