"""The verifier as the host's agent: `--train.agent_func_path .../openrlhf_ktae/verifier/agent.py`.

Runs in the vLLM engine's actor, for training and evaluation. The host generates; this file adds only the reward.
Departures from the host: the reward is never None, only the generated tokens are graded, and `extra_logs` always has
the same keys.
"""

import logging
import traceback
from collections import deque
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Verdict, Verifier, VerifierConfig
from openrlhf_ktae.verifier.formats import keeps_format, opening_of, response_text
from openrlhf_ktae.verifier.user_reward import HINT, RewardFile, label_and_row
from openrlhf_ktae.verifier.verdict import FAILURES, Reason

logger = logging.getLogger(__name__)

MIN_VERDICTS_TO_STOP = 64  # with fewer, the share of unknown verdicts does not stop the run
EXAMPLES = 5


class AgentExecutor(SingleTurnAgentExecutor):
    """Single-turn generation by the host, graded by `Verifier`. Settings: `OPENRLHF_KTAE_VERIFIER` (JSON)."""

    def __init__(self) -> None:
        """Read the settings and start the workers in the background while the engine loads its model."""
        super().__init__()
        config = self.config = VerifierConfig.from_env()
        self._unknown: deque[Verdict | None] = deque(maxlen=config.unknown_window)
        self._file: RewardFile | None = None
        if config.reward_file:
            self._file = RewardFile(config.reward_file, config.reward_timeout_s, config.reward_log_keys)
        else:
            self.verifier = Verifier(config)
            self.verifier.start()

    async def execute(
        self, prompt: Any, label: Any, sampling_params: Any, max_length: int, hf_tokenizer: Any, *rest: Any, **more: Any
    ) -> dict[str, Any]:
        """Generate as the host does; add `reward`, `scores` and `extra_logs` to the output."""
        labelled, (label, _) = label, label_and_row(label)
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, *rest, **more)
        tokens = output["observation_tokens"]
        start, end = output["action_ranges"][-1]
        completion = response_text(hf_tokenizer, tokens[start:end])
        response = opening_of(prompt) + completion
        if self._file is None:
            verdict = await self._checked(label, response)
            score = float(verdict.status == CORRECT)
            reward = self.config.correct_reward if verdict.status == CORRECT else self.config.wrong_reward
            logs: dict[str, float] = {}
        else:
            query = hf_tokenizer.decode(tokens, skip_special_tokens=False)
            given = await self._file.grade(query, prompt, labelled, completion)
            verdict = _verdict_of(given.failure, given.score, label, self.config.correct_threshold)
            reward, score, logs = given.reward, given.score, given.logs
            output[HINT] = given.hint
        output.update(self.reward_fields(verdict, reward, score, response, logs))
        self._watch(verdict)
        return output

    async def _checked(self, label: Any, response: str) -> Verdict:
        """The verdict; an error in the verifier itself gives an unknown verdict and does not end the run."""
        try:
            return await self.verifier.averify(label, response)
        except Exception:
            detail = traceback.format_exc()
            logger.error("the verifier failed on the label %r:\n%s", label, detail)
            return Verdict(UNKNOWN, Reason.INTERNAL_ERROR, gold=repr(label), detail=detail)

    def reward_fields(
        self, verdict: Verdict, reward: float, score: float, response: str, logs: dict[str, float]
    ) -> dict[str, Any]:
        """`reward`, `scores`, `extra_logs` of one rollout: plain floats, always with the same keys.

        With `exclude`, an unknown verdict has the score NaN, which the trainer leaves out of group statistics.
        """
        config = self.config
        kept = keeps_format(response, config.require_tags, config.require_single_answer)
        policy = config.after_retry if config.unknown == "retry" else config.unknown
        if verdict.status == UNKNOWN:
            reward, score = (0.0, float("nan")) if policy == "exclude" else (config.wrong_reward, 0.0)
        elif kept:
            reward += config.format_reward
        own = {
            "verifier_correct": float(verdict.status == CORRECT),
            "verifier_wrong": float(verdict.status == WRONG),
            "verifier_unknown": float(verdict.status == UNKNOWN),
            "verifier_timeout": float(verdict.reason in (Reason.CPU_LIMIT, Reason.WALL_LIMIT)),
            "verifier_failed": float(verdict.reason in FAILURES),
            "verifier_no_answer": float(verdict.status != UNKNOWN and verdict.extracted is None),
            "verifier_format": float(kept),
            "verifier_seconds": float(verdict.seconds),
        }
        return {"reward": float(reward), "scores": float(score), "extra_logs": {**logs, **own}}

    def _watch(self, verdict: Verdict) -> None:
        """Stop the run if too many verdicts are unknown, because the reward would be noise."""
        self._unknown.append(verdict if verdict.status == UNKNOWN else None)
        unknown = [seen for seen in self._unknown if seen is not None]
        share = len(unknown) / len(self._unknown)
        least = min(MIN_VERDICTS_TO_STOP, self.config.unknown_window)
        if len(self._unknown) < least or share <= self.config.max_unknown_share:
            return
        examples = "\n".join(
            f"  gold {seen.gold!r}, answer {seen.extracted!r}: {seen.reason} {seen.detail}"
            for seen in unknown[-EXAMPLES:]
        )
        raise TrainingStopped(
            f"{share:.1%} of the last {len(self._unknown)} answers could not be checked, more than max_unknown_share "
            f"({self.config.max_unknown_share:.1%}) allows. Look at these, or raise the limit:\n{examples}"
        )


def _verdict_of(failure: str, score: float, label: Any, threshold: float) -> Verdict:
    """The verdict that follows from a user's score."""
    if failure:
        return Verdict(UNKNOWN, Reason.REWARD_FUNC_FAILED, gold=str(label), detail=failure)
    return Verdict(CORRECT if score > threshold else WRONG, Reason.REWARD_FUNC, extracted="", gold=str(label))
