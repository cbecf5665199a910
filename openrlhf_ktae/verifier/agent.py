"""The verifier as the host's agent: `--train.agent_func_path .../openrlhf_ktae/verifier/agent.py`.

Runs inside the vLLM engine's actor. Generation is the host's; only the reward is ours. Departures from the host:
the reward is never None, only the generated tokens are graded, and `extra_logs` always has the same keys.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, Verdict, Verifier, VerifierConfig

logger = logging.getLogger(__name__)

MIN_VERDICTS_TO_STOP = 64  # fewer verdicts do not make a share
EXAMPLES = 5
TIMEOUTS = ("cpu time limit", "wall time limit")


class AgentExecutor(SingleTurnAgentExecutor):
    """Single-turn generation by the host, graded by `Verifier`. Settings: `OPENRLHF_KTAE_VERIFIER` (JSON)."""

    def __init__(self) -> None:
        super().__init__()
        self.config = VerifierConfig.from_env()
        self.verifier = Verifier(self.config)
        self.verifier.start()
        self._unknown: deque[Verdict | None] = deque(maxlen=self.config.unknown_window)

    async def execute(
        self,
        prompt: Any,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Generate as the host does, then put `reward`, `scores` and `extra_logs` on its output."""
        output = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=images
        )
        start, end = output["action_ranges"][-1]
        response = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=True)
        verdict = await self.verifier.averify(label, response)
        output.update(self.reward_fields(verdict))
        self._watch(verdict)
        return output

    def reward_fields(self, verdict: Verdict) -> dict[str, Any]:
        """`reward`, `scores`, `extra_logs` of one rollout: plain floats, the same keys every time."""
        config = self.config
        policy = config.after_retry if config.unknown == "retry" else config.unknown
        reward = config.correct_reward if verdict.status == CORRECT else config.wrong_reward
        score = 1.0 if verdict.status == CORRECT else 0.0
        if verdict.status == UNKNOWN and policy == "exclude":
            reward, score = 0.0, float("nan")
        logs = {
            "verifier_correct": float(verdict.status == CORRECT),
            "verifier_unknown": float(verdict.status == UNKNOWN),
            "verifier_timeout": float(verdict.reason in TIMEOUTS),
            "verifier_no_answer": float(verdict.extracted is None),
            "verifier_seconds": float(verdict.seconds),
        }
        return {"reward": float(reward), "scores": score, "extra_logs": logs}

    def _watch(self, verdict: Verdict) -> None:
        """Stop the run when too many verdicts are unknown: the reward would be noise."""
        self._unknown.append(verdict if verdict.status == UNKNOWN else None)
        unknown = [seen for seen in self._unknown if seen is not None]
        share = len(unknown) / len(self._unknown)
        if len(self._unknown) < MIN_VERDICTS_TO_STOP or share <= self.config.max_unknown_share:
            return
        examples = "\n".join(
            f"  gold {seen.gold!r}, answer {seen.extracted!r}: {seen.reason} {seen.detail}"
            for seen in unknown[-EXAMPLES:]
        )
        raise RuntimeError(
            f"{share:.0%} of the last {len(self._unknown)} answers could not be checked, above max_unknown_share = "
            f"{self.config.max_unknown_share:.0%}. Look at the golds below, or raise the limit:\n{examples}"
        )
