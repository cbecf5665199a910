"""Shared by the model generators: a word-level tokenizer, a small Qwen2 and its pretraining loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import AddedToken, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

PAD, EOS = "<pad>", "<eos>"
HEAD_SIZE = 32  # the smallest that vLLM's CPU attention supports
N_LAYERS = 2
IGNORED = -100  # transformers' label for positions without loss

Pair = tuple[str, str]
"""A prompt, and a response without end token."""


def make_tokenizer(words: Sequence[str], max_length: int) -> Qwen2Tokenizer:
    """Return a tokenizer with one id per word (with its leading space, if any), and single bytes for all other text.

    transformers loads every folder of model type `qwen2` with `Qwen2Tokenizer`, which splits numbers into
    digits. So words and numbers are added tokens, which that class matches first.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([PAD, EOS, *bytes_])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token=None,  # type: ignore[arg-type]  # bytes cover all text
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        model_max_length=max_length,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return tokenizer


def make_untrained_model(tokenizer: Qwen2Tokenizer, hidden_size: int) -> Qwen2ForCausalLM:
    """Return a two-layer Qwen2 with tied embeddings."""
    heads = hidden_size // HEAD_SIZE
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,  # engines pad to multiples of 64
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config).float()


def as_batch(tokenizer: Qwen2Tokenizer, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels of prompts with responses, both (B, T); prompt tokens have no loss."""
    ids, labels = [], []
    for prompt_text, response_text in pairs:
        prompt = tokenizer.encode(prompt_text)
        response = tokenizer.encode(f"{response_text}{tokenizer.eos_token}")
        ids.append(torch.tensor(prompt + response))
        labels.append(torch.tensor([IGNORED] * len(prompt) + response))
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    return padded, pad_sequence(labels, batch_first=True, padding_value=IGNORED)


def pretrain(
    model: Qwen2ForCausalLM,
    draw: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    learning_rate: float,
    enough: Callable[[int], bool] = lambda step: False,
) -> None:
    """Train `model` on next-token prediction for `steps` batches from `draw`, or until `enough(step)`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    started = time.monotonic()
    for step in range(1, steps + 1):
        ids, labels = draw()
        loss = model(ids, attention_mask=(ids != model.config.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
        if enough(step):
            break
