"""Evaluations during training give the same figures as `cli.eval` for the same responses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.figures.summary import summarize as summarize_rows

SAMPLES = 4
ANSWERS = {  # four samples each; 2 is right
    "right": [["2", "2", "3", "3"], ["2", "5", "6", None], ["9", "9", "2", "8"]],
    "hard": [["3", "3", "3", "3"], ["4", "2", "4", None]],
}
WORDS = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    "--advantage_estimator ktae --n_samples_per_prompt 4 --init_kl_coef 0"
).split()


class Tokenizer:
    """Every character is an id."""

    name_or_path, eos_token_id, pad_token_id, bos_token_id = "", None, None, None

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def held_out(host):
    from openrlhf_ktae.trainer.ppo_utils import held_out

    return held_out


def text_of(answer):
    return "none" if answer is None else f"\\boxed{{{answer}}}"


def rollout(prompt, answer, **info):
    ids = [1, *map(ord, text_of(answer))]
    return SimpleNamespace(
        sequences=torch.tensor([ids]),
        action_mask=torch.ones(1, len(ids) - 1),
        rewards=None,
        scores=torch.tensor([float(answer == "2")]),
        response_length=torch.tensor([len(ids) - 1]),
        truncated=torch.tensor([answer is None]),
        prompts=[prompt],
        labels=["2"],
        index=[0],
        info={name: torch.tensor([value]) for name, value in info.items()},
    )


def parts(order=1):
    return {
        name: [rollout(f"p{i}", one) for i, group in list(enumerate(groups))[::order] for one in group]
        for name, groups in ANSWERS.items()
    }


def rows():
    for name, groups in ANSWERS.items():
        for i, group in enumerate(groups):
            for one in group:
                verdict = "correct" if one == "2" else "wrong"
                yield {"benchmark": name, "id": f"{i:09d}", "verdict": verdict, "extracted": one} | {
                    "format": one is not None,
                    "characters": 0,
                    "tokens": len(text_of(one)),
                    "truncated": one is None,
                }


def test_the_figures_equal_the_evaluation_commands(held_out):
    read = held_out.answer_reader(parse_command_line(WORDS), Tokenizer())
    found = held_out.summarize(parts(), SAMPLES, 0.0, read)
    theirs = summarize_rows(rows(), {})
    groups = {f"eval_{name}": group for name, group in theirs["benchmarks"].items()}
    for prefix, group in {**groups, "eval_macro": theirs["macro"], "eval": theirs["pooled"]}.items():
        assert found[f"{prefix}_accuracy"] == group["accuracy"]
        assert [found[f"{prefix}_accuracy_{end}"] for end in ("low", "high")] == group["ci95"]
        for name in ("truncated_rate", "format_rate", "answered_rate", "response_length_mean"):
            assert found[f"{prefix}_{name}"] == group[name]
        for k in range(1, SAMPLES + 1):
            assert found[f"{prefix}_pass{k}"] == group["pass_at_k"][str(k)]["value"]
        assert found[f"{prefix}_maj2"] == group["maj_at_k"]["2"]["value"]
        assert found[f"{prefix}_maj4"] == group["maj_at_k"]["4"]["value"]
    assert found["eval_right_maj4"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3), "ties must be broken evenly"
    assert (found["eval_problems"], found["eval_rollouts"], found["eval_unknown"]) == (5, 20, 0)


def test_the_order_of_answers_changes_no_interval(held_out):
    read = held_out.answer_reader(parse_command_line(WORDS), Tokenizer())
    assert held_out.summarize(parts(-1), SAMPLES, 0.0, read) == held_out.summarize(parts(), SAMPLES, 0.0, read)


def test_without_the_verifier_there_is_no_majority_vote(held_out):
    for words in (["--reward.remote_url", "mine.py"], ["--train.agent_func_path", "agent.py"]):
        assert held_out.answer_reader(parse_command_line([*WORDS, *words]), Tokenizer()) is None
    found = held_out.summarize(parts(), SAMPLES, 0.0)
    assert found["eval_pass2"] > found["eval_accuracy"]
    assert not any("maj" in name or "format" in name or "answered" in name for name in found)


def test_unknown_verdicts_are_counted_with_and_without_a_score(held_out):
    one, other = rollout("p", "2"), rollout("p", "3", verifier_unknown=1.0)
    one.scores = torch.tensor([float("nan")])
    found = held_out.summarize({"a": [one, other]}, 2, 0.0)
    assert (found["eval_unknown"], found["eval_accuracy"]) == (2, 0)


def test_no_rollouts_give_no_metrics(held_out):
    assert held_out.summarize({}, 1, 0.0) == {}


def test_a_score_at_the_threshold_is_wrong_everywhere(held_out):
    """Scores are float32, and 0.3 in float32 is more than 0.3."""
    from openrlhf_ktae.trainer.ppo_utils.continuations import mixed
    from openrlhf_ktae.trainer.ppo_utils.group_filter import judge_group
    from openrlhf_ktae.trainer.ppo_utils.raw_scores import plain_scores

    group = [rollout("p", answer) for answer in "23"]
    group[1].scores = torch.tensor([0.3])
    assert mixed(group, 0.3)
    assert [row["verdict"] for row in held_out.rows_of(group, 2, 0.3)] == ["correct", "wrong"]
    assert judge_group(plain_scores(group), [True, True], 0.3).correct == 1
