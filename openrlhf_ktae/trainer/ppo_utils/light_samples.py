"""Departure from the host: requesting and receiving samples costs the controller less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.trainer.ppo_utils import host_speed
from openrlhf_ktae.trainer.ppo_utils.messages import LOG_PROBS, TOKENS, Answer, Arrived, SentOnce
from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly

HOSTS_MAX_LEN = 2048
"""What the host takes where nobody gives `max_len`."""


class LightSamplesGenerator(SamplesGenerator):
    """The host's generator; the tokenizer is sent to each engine once, and rollouts are made a group at a time."""

    tokenizer: Any
    _sent: tuple[Any, SentOnce] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host_speed.install()
        if ray.is_initialized():
            send_tensors_plainly()

    def _dispatch_prompts_to_vllm(
        self, prompts: list[str], labels: list[str], *, images: Any = None, **generate_kwargs: Any
    ) -> list[Any]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)
        if self._sent is None or self._sent[0] is not tokenizer:
            self._sent = tokenizer, SentOnce(tokenizer)
        with temporarily(self, tokenizer=self._sent[1]):
            return super()._dispatch_prompts_to_vllm(prompts, labels, images=images, **generate_kwargs)

    def _process_response_into_experience(self, response: dict[str, Any], **generate_kwargs: Any) -> Experience:
        if not isinstance(response, Answer):
            return super()._process_response_into_experience(response, **generate_kwargs)
        among = response.among
        if among.made is None:
            among.made = experiences_of(among, generate_kwargs.get("max_len", HOSTS_MAX_LEN))
        if not among.made:
            return super()._process_response_into_experience(response, **generate_kwargs)
        return among.made[response.place]


def experiences_of(among: Arrived, max_len: int) -> list[Experience]:
    """Return what the host makes of the answers to one prompt, as views of a few tensors; nothing where some differ.

    The host makes 15 tensors of each rollout, which takes 165 us and fresh memory for three of its length.
    """
    answers, lengths = among.answers, among.lengths.get(TOKENS, [])
    log_probs = among.lengths.get(LOG_PROBS)
    if not lengths or (log_probs is None and any(answer.get(LOG_PROBS) is not None for answer in answers)):
        return []
    kept = [min(length, max_len) for length in lengths]
    figures = [figures_of(answer, length >= max_len) for answer, length in zip(answers, kept, strict=True)]
    if any(one.keys() != figures[0].keys() for one in figures):
        return []
    masks, response_lengths = action_masks([answer["action_ranges"] for answer in answers], lengths, max_len)
    ones_1T = torch.ones((1, max(kept)), dtype=torch.int64)
    columns: dict[str, Sequence[Any]] = {
        "sequences": rows(among.arrays[TOKENS], lengths, 0, max_len),
        "attention_mask": [ones_1T[:, :length] for length in kept],
        "action_mask": masks,
        "rollout_log_probs": [None] * len(answers)
        if log_probs is None
        else rows(among.arrays[LOG_PROBS], log_probs, 1, max_len),
        "rewards": column([answer.get("reward") for answer in answers]),
        "scores": column([answer.get("scores") for answer in answers]),
        "response_length": column(response_lengths),
        "truncated": column([answer.get("truncated", False) for answer in answers]),
        "total_length": column([float(length) for length in kept]),
        "info": [
            dict(zip(figures[0], row, strict=True))
            for row in zip(*(column([one[name] for one in figures]) for name in figures[0]), strict=True)
        ],
    }
    return [
        Experience(
            **dict(zip(columns, row, strict=True)),
            prompts=[answer["prompt"]],
            labels=[answer["label"]],
            images=[answer.get("images")],
            mm_train_inputs=[answer.get("mm_train_inputs")],
        )
        for answer, row in zip(answers, zip(*columns.values(), strict=True), strict=True)
    ]


def figures_of(answer: dict[str, Any], clipped: bool) -> dict[str, Any]:
    """Return what the host puts into `info` of a rollout, as numbers."""
    given = {"response_clip_ratio": clipped, "reward": answer.get("reward"), "score": answer.get("scores")}
    figures = {name: value for name, value in given.items() if value is not None}
    for name, value in answer.get("extra_logs", {}).items():
        figures[name] = value.flatten()[0].item() if isinstance(value, torch.Tensor) else value
    return figures


def rows(array_N: NDArray[Any], lengths: list[int], start: int, end: int) -> list[torch.Tensor]:
    """Return from `start` to `end` of each of the parts of an array, as (1, T)."""
    parts = torch.from_numpy(array_N)[None].split(lengths, dim=1)
    return [part[:, start:end] if start or length > end else part for part, length in zip(parts, lengths, strict=True)]


def action_masks(
    ranges: list[Sequence[tuple[int, int]]], lengths: list[int], max_len: int
) -> tuple[Sequence[torch.Tensor], list[int]]:
    """Return 1 where a token after the first was generated, (1, T - 1), and the number from the first to the last."""
    widths = [max(min(length, max_len) - 1, 0) for length in lengths]
    masks_N, spans, offset = np.zeros(sum(widths), np.int64), [], 0
    for of_row, length, width in zip(ranges, lengths, widths, strict=True):
        pairs = [slice(*pair).indices(length) for pair in of_row]
        acted = [
            (max(start, 1) - 1, min(end - 1, width)) for start, end, _ in pairs if max(start, 1) < min(end, width + 1)
        ]
        for start, end in acted:
            masks_N[offset + start : offset + end] = 1
        spans.append(max(end for _, end in acted) - min(start for start, _ in acted) if acted else 0)
        offset += width
    return torch.from_numpy(masks_N)[None].split(widths, dim=1), spans


def column(values: Sequence[Any]) -> Sequence[torch.Tensor | None]:
    """Return `torch.tensor([value])` of each value, None of None; of numbers of one type as views of one tensor."""
    if len(set(map(type, values))) == 1 and type(values[0]) in (bool, int, float):
        return torch.tensor(values).split(1)
    return [None if value is None else torch.tensor([value]) for value in values]
