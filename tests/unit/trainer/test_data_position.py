"""A run resumed at any step draws the same prompts and trains on the same rollouts as an uninterrupted one."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from marks import SLOW

from openrlhf_ktae.cli.options import parse_command_line

pytestmark = SLOW

SAMPLES, BATCH = 4, 4
WORDS = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    f"--advantage_estimator ktae --n_samples_per_prompt {SAMPLES} --rollout_batch_size {BATCH} --train_batch_size 8 "
    "--init_kl_coef 0 --max_len 32 --num_episodes 3"
)
KINDS = ([1.0, 0.0, 1.0, 0.0], [1.0] * SAMPLES, [0.0] * SAMPLES)


class Engine:
    """Gives every third prompt mixed scores, and returns the seed as a token."""

    def __init__(self, ray):
        def answer(prompt, label, num_samples, sampling_params, **_):
            scores, seed = KINDS[int(prompt[1:]) % 3], sampling_params.seed
            return ray.put([response(prompt, label, scores[i], seed) for i in range(num_samples)])

        self.generate_responses = SimpleNamespace(remote=answer)
        self.hold = self.release = SimpleNamespace(remote=lambda *_: ray.put(0))
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))


def response(prompt, label, score, seed=1):
    return {
        "prompt": prompt,
        "label": label,
        "observation_tokens": [5, 6, 7, seed],
        "action_ranges": [(2, 4)],
        "reward": score,
        "scores": score,
        "rollout_log_probs": None,
        "extra_logs": {"verifier_correct": score},
        "sampling_seed": seed,
        "weights_step": 0,
    }


def new_run(ray, prompts, *words):
    """Build loader and generator as a trainer does in a fresh process."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedLoader
    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    args = parse_command_line([*WORDS.split(), *words])
    args.train.full_determinism_enable = (
        True  # groups in order, with seeds; refused with --train.async_enable only here
    )
    rows = [("default", f"p{i}", "label", None) for i in range(prompts)]

    def collate(batch):
        return tuple(list(column) for column in zip(*batch, strict=True))

    torch.manual_seed(1)
    loader = StatefulDataLoader(rows, batch_size=1, shuffle=True, drop_last=True, collate_fn=collate)
    generator = KTAESamplesGenerator(SimpleNamespace(args=args), loader, None, None, [Engine(ray)])
    return PositionedLoader(loader, generator), generator


def steps(run, first_episode=0):
    """Yield each step's prompts and the state in a checkpoint after it, looping as the host's `fit` does."""
    from openrlhf_ktae.base.errors import TrainingStopped

    loader, generator = run
    for episode in range(first_episode, 3):
        while True:
            try:
                batch, _, _, exhausted = generator.generate_samples()
            except TrainingStopped:
                return
            if batch:
                yield (
                    [(rollout.prompts[0], int(rollout.sequences[0, -1])) for rollout in batch],
                    (episode, loader.state_dict()),
                )
            elif not exhausted:
                continue
            if exhausted:
                break


def through_a_file(state):
    """Save and load the state as the trainer does: plain containers, read without executing code."""
    from openrlhf_ktae.trainer.ppo_utils.data_position import POSITION, plain_position

    episode, position = state
    file = io.BytesIO()
    torch.save([position["loader"], plain_position(position[POSITION])], file)
    file.seek(0)
    saved_loader, saved_position = torch.load(file, weights_only=True)
    return episode + saved_position["ended"], {"loader": saved_loader, POSITION: saved_position}


FILTERING = "--dynamic_filtering --algo.dynamic_filtering_skip_solved 1"
OVERSAMPLING = "--rollout.vllm_generate_batch_size 10 --train.async_enable"


@pytest.mark.parametrize(
    ("words", "prompts"),
    [("", 8), ("", 11), (FILTERING, 30), (FILTERING, 34), (OVERSAMPLING, 23), (f"{FILTERING} {OVERSAMPLING}", 30)],
)
def test_every_step_can_be_resumed(ray_here, words, prompts):
    """With 11 prompts an episode ends mid-batch, where the host would repeat a whole episode."""
    straight = list(steps(new_run(ray_here, prompts, *words.split())))
    assert len(straight) >= 4
    for number, (_, state) in enumerate(straight):
        episode, position = through_a_file(state)
        loader, _ = again = new_run(ray_here, prompts, *words.split())
        torch.manual_seed(100 + number)  # the new process's random state must not matter
        loader.load_state_dict(position)
        resumed = [drawn for drawn, _ in steps(again, episode)]
        assert resumed == [drawn for drawn, _ in straight[number + 1 :]], f"after step {number + 1}"


def test_buffered_rollouts_are_restored_unchanged(ray_here):
    from dataclasses import fields

    run = new_run(ray_here, 30, *OVERSAMPLING.split())
    _, state = next(steps(run))
    _, position = through_a_file(state)
    loader, generator = new_run(ray_here, 30, *OVERSAMPLING.split())
    loader.load_state_dict(position)
    assert len(generator._sample_buffer) == 6 * SAMPLES
    for before, after in zip(run[1]._sample_buffer, generator._sample_buffer, strict=True):
        for field in fields(before):
            a, b = getattr(before, field.name), getattr(after, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_a_plain_host_state_is_accepted(ray_here):
    run = new_run(ray_here, 16)
    straight = list(steps(run))
    state = straight[1][1]
    loader, _ = again = new_run(ray_here, 16)
    loader.load_state_dict(state[1]["loader"])
    resumed, expected = list(steps(again, 0))[:2], straight[2:4]
    assert [prompts_of(step) for step in resumed] == [prompts_of(step) for step in expected]


def prompts_of(step):
    return [prompt for prompt, _ in step[0]]
