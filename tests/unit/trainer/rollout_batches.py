"""Handmade batches in the host's layout for tests of the experience maker, without Ray or a model."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from openrlhf_ktae.cli.options import parse_command_line

N = 4  # rollouts per prompt
PAD = 0

BASE = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 "
    f"--advantage_estimator ktae --n_samples_per_prompt {N} --init_kl_coef 0"
).split()


def arguments(*words):
    return parse_command_line([*BASE, *words])


class Tokenizer:
    all_special_ids = (PAD, 1)
    pad_token_id = PAD

    def decode(self, ids):
        return f"<{ids[0]}>"


def maker(module, *words):
    """Return an experience maker without actors, for its arithmetic only."""
    args = arguments(*words)
    args.reward.clip_range = (-10, 10)
    kl = SimpleNamespace(value=0.0)
    return module.KTAEExperienceMaker(None, None, None, None, kl, SimpleNamespace(args=args), Tokenizer())


def rollouts(prompts=3, seed=0, late=(), per_prompt=N, lopsided=False):
    """Return single-rollout experiences in the host's layout; correct rollouts contain id 7, wrong ones id 8.

    Half of each group is right, or with `lopsided` only one rollout. `late` rollouts lose 2 of reward, but no score.
    """
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(prompts * per_prompt):
        correct = index % per_prompt < (1 if lopsided else 2)
        length = int(torch.randint(3, 7, (1,), generator=generator))
        response = torch.randint(10, 14, (length,), generator=generator)
        response[0] = 7 if correct else 8
        sequence = torch.cat([torch.tensor([5, 6]), response, torch.tensor([1])]).unsqueeze(0)
        mask = torch.zeros(1, sequence.size(1) - 1)
        mask[:, 1:] = 1
        samples.append(
            Experience(
                sequences=sequence,
                attention_mask=torch.ones_like(sequence),
                action_mask=mask,
                action_log_probs=torch.zeros_like(mask),
                kl=torch.zeros_like(mask),
                rewards=torch.tensor([float(correct)]) - (2.0 if index in late else 0.0),
                scores=torch.tensor([float(correct)]),
                response_length=torch.tensor([length + 1]),
                truncated=torch.tensor([False]),
                total_length=torch.tensor([float(sequence.size(1))]),
                prompts=[f"prompt {index // per_prompt}"],
                labels=["x"],
                index=[index],
                info={name: torch.tensor([float(correct)]) for name in ("reward", "score", "kl", "logprobs_diff")},
            )
        )
    return samples


def batched(samples, size):
    from openrlhf.trainer.ppo_utils.experience import Experience

    return [Experience.concat_experiences(samples[i : i + size], PAD) for i in range(0, len(samples), size)]


def by_rollout(experiences):
    """Return each rollout's advantages on action tokens, by the host's index."""
    return {
        index: e.advantages[row][e.action_mask[row].bool()] for e in experiences for row, index in enumerate(e.index)
    }
