"""An agent whose rollouts do not depend on the model, so that trainers can be compared."""

from __future__ import annotations

import random
from collections import Counter

from openrlhf.utils.agent import AgentExecutorBase


class AgentExecutor(AgentExecutorBase):
    """Answers with numbers seeded by the prompt and its rollout's number; every second rollout is right."""

    def __init__(self):
        self.seen = Counter()

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        count = self.seen[prompt] = self.seen[prompt] + 1
        chance = random.Random(f"{prompt} {count}")
        text = " ".join(str(chance.randrange(100)) for _ in range(chance.randrange(6, 14)))
        ids = hf_tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
        answer = hf_tokenizer(text=text, add_special_tokens=False)["input_ids"] + [hf_tokenizer.eos_token_id]
        return {
            "prompt": prompt,
            "label": label,
            "images": None,
            "mm_train_inputs": None,
            "observation_tokens": ids + answer,
            "action_ranges": [(len(ids), len(ids) + len(answer))],
            "rollout_log_probs": None,
            "truncated": False,
            "reward": float(count % 2),
            "scores": float(count % 2),
            "extra_logs": {},
        }
