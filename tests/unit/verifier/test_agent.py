"""The agent in the host: rewards, policies for unknown verdicts, users' reward files, the stop on many unknowns.

The host's own `execute` runs on scripted tokens instead of an engine's (tests/e2e uses engines).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf_ktae.verifier import Verdict, VerifierConfig, pool
from openrlhf_ktae.verifier.config import CONFIG_VARIABLE
from openrlhf_ktae.verifier.user_reward import HINT, LabelledRow

KEYS = {
    "verifier_correct",
    "verifier_wrong",
    "verifier_unknown",
    "verifier_timeout",
    "verifier_failed",
    "verifier_no_answer",
    "verifier_format",
    "verifier_seconds",
}
PROMPT = "What is 2 + 3? "


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=byte_level)


class Script:
    """Stand-in for the engine that returns scripted responses."""

    def __init__(self, tokenizer, responses):
        self.tokenizer, self.responses = tokenizer, list(responses)

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        ids = self.tokenizer(self.responses.pop(0), add_special_tokens=False)["input_ids"]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)])


@pytest.fixture
def agent(host, monkeypatch):
    """Build agents as the engine actor does: without arguments, settings in the environment."""
    from openrlhf_ktae.verifier.agent import AgentExecutor

    made = []

    def make(**options):
        options = {"workers": 1, **options}
        monkeypatch.setenv(CONFIG_VARIABLE, VerifierConfig.from_mapping(options).to_env()[CONFIG_VARIABLE])
        made.append(AgentExecutor())
        return made[-1]

    yield make
    for executor in made:
        if hasattr(executor, "verifier"):
            executor.verifier.close()


def rollouts(agent, tokenizer, *labelled):
    """Return the host's outputs for (label, response) pairs, run concurrently as in an engine."""

    async def all_of_them():
        script = Script(tokenizer, [response for _, response in labelled])
        params = SimpleNamespace(max_tokens=100, logprobs=None)
        return await asyncio.gather(
            *[agent.execute(PROMPT, label, params, 100000, tokenizer, script) for label, _ in labelled]
        )

    return asyncio.run(all_of_them())


def one(agent, tokenizer, label, response):
    return rollouts(agent, tokenizer, (label, response))[0]


def test_rewards_scores_and_constant_keys(agent, tokenizer):
    executor = agent(correct_reward=2.0, wrong_reward=-1.0)
    right, wrong, empty, unknown = rollouts(
        executor, tokenizer, ("5", r"\boxed{5}"), ("5", r"\boxed{6}"), ("5", "hm"), (None, r"\boxed{5}")
    )
    assert [(o["reward"], o["scores"]) for o in (right, wrong, empty)] == [(2.0, 1.0), (-1.0, 0.0), (-1.0, 0.0)]
    assert unknown["reward"] == 0.0 and math.isnan(unknown["scores"])
    for output in (right, wrong, empty, unknown):
        assert set(output["extra_logs"]) == KEYS
        assert all(type(value) is float for value in output["extra_logs"].values())
        counted = [output["extra_logs"][f"verifier_{status}"] for status in ("correct", "wrong", "unknown")]
        assert sorted(counted) == [0.0, 0.0, 1.0]
    assert empty["extra_logs"]["verifier_no_answer"] == 1.0
    assert unknown["extra_logs"]["verifier_unknown"] == 1.0


def test_only_the_response_is_graded(agent, tokenizer):
    executor = agent()

    async def run():
        script = Script(tokenizer, ["I do not know."])
        params = SimpleNamespace(max_tokens=100, logprobs=None)
        return await executor.execute(r"Put \boxed{5} at the end. ", "5", params, 100000, tokenizer, script)

    assert asyncio.run(run())["scores"] == 0.0


def test_the_hosts_fields_are_unchanged(agent, tokenizer):
    output = one(agent(), tokenizer, "5", r"so \boxed{5}")
    start, end = output["action_ranges"][0]
    assert tokenizer.decode(output["observation_tokens"][start:end]) == r"so \boxed{5}"
    assert (output["prompt"], output["label"], output["truncated"]) == (PROMPT, "5", False)


@pytest.mark.parametrize(
    ("options", "reward", "score"),
    [
        ({"unknown": "zero", "wrong_reward": -0.5}, -0.5, 0.0),
        ({"unknown": "exclude", "wrong_reward": -0.5}, 0.0, None),
        ({"unknown": "retry", "after_retry": "zero", "wrong_reward": -0.5}, -0.5, 0.0),
        ({"unknown": "retry", "after_retry": "exclude"}, 0.0, None),
    ],
)
def test_policy_for_unknown_verdicts(agent, tokenizer, options, reward, score):
    output = one(agent(**options), tokenizer, "", r"\boxed{5}")
    assert output["reward"] == reward
    assert output["scores"] == score if score is not None else math.isnan(output["scores"])
    assert output["extra_logs"]["verifier_unknown"] == 1.0


def test_timeouts_are_counted(agent, tokenizer, monkeypatch):
    monkeypatch.setattr(pool, "MAX_DEATHS", 1)  # no retry on a second worker
    executor = agent(timeout_s=0.4)
    assert executor.verifier.pool.wait_ready()
    for worker in executor.verifier.pool._workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    output = one(executor, tokenizer, r"\frac{1}{2}", r"\boxed{\frac{3}{6}}")
    assert (output["extra_logs"]["verifier_unknown"], output["extra_logs"]["verifier_timeout"]) == (1.0, 1.0)


def test_a_defect_of_the_verifier_gives_an_unknown_verdict(agent, tokenizer, caplog):
    class Odd:
        def __str__(self):
            raise RuntimeError("no text in here")

        def __repr__(self):
            return "Odd()"

    output = one(agent(unknown="zero"), tokenizer, Odd(), r"\boxed{5}")
    assert output["extra_logs"]["verifier_unknown"] == 1.0
    assert "no text in here" in caplog.text


def test_format_reward_is_added_to_the_reward_and_not_to_the_score(agent, tokenizer):
    executor = agent(format_reward=0.25, require_tags=["think", "answer"], require_single_answer=True)
    kept, broken = rollouts(
        executor,
        tokenizer,
        ("5", "<think>2+3</think><answer>6</answer>"),
        ("5", r"<answer>5</answer><think></think>"),
    )
    assert (kept["reward"], kept["scores"], kept["extra_logs"]["verifier_format"]) == (0.25, 0.0, 1.0)
    assert (broken["reward"], broken["scores"], broken["extra_logs"]["verifier_format"]) == (1.0, 1.0, 0.0)


def test_too_many_unknowns_stop_the_run_with_examples(agent, tokenizer):
    executor = agent(max_unknown_share=0.25, unknown_window=100)
    good, bad = ("5", r"\boxed{5}"), (r"\frac{1}{", r"\boxed{77}")
    rollouts(executor, tokenizer, *[good] * 60, *[bad] * 20)
    with pytest.raises(RuntimeError) as stop:
        rollouts(executor, tokenizer, *[bad] * 10)
    message = str(stop.value)
    assert "max_unknown_share (25.0%)" in message
    assert message.count("answer '77': gold unreadable") == 5


def test_a_short_window_stops_the_run_once_it_is_full(agent, tokenizer):
    executor = agent(max_unknown_share=0.5, unknown_window=8)
    unreadable = (r"\frac{1}{", r"\boxed{77}")
    rollouts(executor, tokenizer, *[unreadable] * 7)
    with pytest.raises(RuntimeError, match=r"100\.0% of the last 8 answers"):
        rollouts(executor, tokenizer, unreadable)


def test_few_verdicts_do_not_stop_the_run(agent, tokenizer):
    executor = agent(max_unknown_share=0.0)
    outputs = rollouts(executor, tokenizer, *[("", r"\boxed{5}")] * 20)
    assert all(output["extra_logs"]["verifier_unknown"] == 1.0 for output in outputs)


REWARD_FILE = """
import torch
seen = []
def reward_func(queries, prompts, labels):
    seen.append((queries, prompts, labels))
    text = queries[0]
    if "raise" in text:
        raise KeyError("a defect of the user's")
    if "nothing" in text:
        return None
    if "nan" in text:
        return {"rewards": torch.tensor([float("nan")])}
    if "slow" in text:
        import time
        time.sleep(5)
    if "exit" in text:
        raise SystemExit(3)
    value = torch.tensor([0.75])
    return {"rewards": value, "scores": torch.tensor([1.0]), "extra_logs": {"mine": torch.tensor([7.0]), "other": 1.0}}
"""


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "reward.py"
    path.write_text(REWARD_FILE)
    return str(path)


def test_a_users_reward_file_works(agent, tokenizer, reward_file):
    executor = agent(reward_file=reward_file, reward_log_keys=["mine"])
    output = one(executor, tokenizer, "5", "hello")
    assert (output["reward"], output["scores"]) == (0.75, 1.0)
    assert output["extra_logs"]["mine"] == 7.0
    assert set(output["extra_logs"]) == KEYS | {"mine"}
    import reward_func

    assert reward_func.seen == [([PROMPT + "hello"], [PROMPT], ["5"])]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("raise", "a defect of the user's"),
        ("nothing", "must return a dict with the key 'rewards'"),
        ("nan", "returned the reward tensor([nan]); it must be one finite number"),
        ("slow", "took longer than 0.3 s"),
        ("exit", "SystemExit"),
    ],
)
def test_reward_file_failures_are_unknown_and_logged_once(agent, tokenizer, reward_file, caplog, response, message):
    executor = agent(reward_file=reward_file, reward_timeout_s=0.3, reward_log_keys=["mine"])
    with caplog.at_level(logging.ERROR):
        outputs = rollouts(executor, tokenizer, *[("5", response)] * 4)
    for output in outputs:
        assert output["extra_logs"]["verifier_unknown"] == 1.0
        assert output["reward"] == 0.0 and math.isnan(output["scores"])
        assert set(output["extra_logs"]) == KEYS | {"mine"}
    assert len(caplog.records) == 1 and message in caplog.text
    assert sum(message in output[HINT] for output in outputs) == 1, "must reach the console once"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "defines no reward_func"),
        ("import not_there_at_all", "not_there_at_all"),
        (None, "no such file"),
    ],
)
def test_an_unusable_reward_file_is_refused_at_the_start(agent, tmp_path, source, message):
    path = tmp_path / "reward.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ValueError, match=message):
        agent(reward_file=str(path))


def test_all_verdicts_serialize_to_json(agent):
    fields = agent().reward_fields(Verdict("wrong", "x", extracted="5"), 0.0, 0.0, "text", {})
    assert json.loads(json.dumps(fields)) == fields


def test_waiting_for_a_free_thread_does_not_count_as_call_time(tmp_path, monkeypatch):
    from openrlhf_ktae.verifier import user_reward

    monkeypatch.setattr(user_reward, "THREADS", 2)
    source = "import time\ndef reward_func(q, p, l):\n    time.sleep(float(l[0]))\n    return {'rewards': [1.0]}\n"
    (tmp_path / "reward.py").write_text(source)
    file = user_reward.RewardFile(str(tmp_path / "reward.py"), timeout_s=0.5)

    async def grades(*seconds):
        return await asyncio.gather(*(file.grade("q", "p", label) for label in seconds))

    assert [one.failure for one in asyncio.run(grades(*[0.3] * 8))] == [""] * 8, "1.2 s in total, 0.3 s per call"
    slow, other, waiting = asyncio.run(grades(3.0, 3.0, 0.0))
    assert "took longer than 0.5 s" in slow.failure
    assert "took longer than 0.5 s" in other.failure
    assert "no call of the reward function has ended for 0.5 s, and 2 are still running" in waiting.failure


ROW = {"input": PROMPT, "label": "5", "answer": "5", "level": 3, "extra_info": {"index": 1}, "data_source": "sums"}
# Reward functions of other libraries: source, rewards of the responses "so 5" and "so 6", keys to log.
FOREIGN = {
    "trl": (
        "def reward_func(prompts, completions, answer, **kwargs):\n"
        "    assert kwargs['level'] == [3]\n"
        "    return [float(a in c) for c, a in zip(completions, answer)]",
        (1.0, 0.0),
        {},
    ),
    "trl_named": (
        "def accuracy(completions, answer):\n    return [float(answer[0] in completions[0])]",
        (1.0, 0.0),
        {},
    ),
    "trl_async": (
        "async def accuracy(completions, answer, **kwargs):\n    return [float(answer[0] in completions[0])]",
        (1.0, 0.0),
        {},
    ),
    "verl": (
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    assert (data_source, extra_info) == ('sums', {'index': 1})\n"
        "    return ground_truth in solution_str",
        (1.0, 0.0),
        {},
    ),
    "verl_dict": (
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
        "    return {'score': 2.0 * (ground_truth in solution_str), 'length': len(solution_str), 'pred': 'x'}",
        (2.0, 0.0),
        {"length": 4.0},
    ),
    "openrlhf": (
        "def reward_func(queries, prompts, labels, **kwargs):\n"
        "    return {'rewards': [float(labels[0] in queries[0][len(prompts[0]):])]}",
        (1.0, 0.0),
        {},
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_reward_functions_of_other_libraries_work_unchanged(agent, tokenizer, tmp_path, name):
    source, rewards, logs = FOREIGN[name]
    (tmp_path / "reward.py").write_text(source)
    executor = agent(reward_file=str(tmp_path / "reward.py"), reward_log_keys=list(logs))
    outputs = rollouts(executor, tokenizer, *((LabelledRow("5", ROW), text) for text in ("so 5", "so 6")))
    assert tuple(output["reward"] for output in outputs) == rewards
    for output in outputs:
        assert output["label"] == "5" and output["extra_logs"]["verifier_unknown"] == 0.0
        assert {key: output["extra_logs"][key] for key in logs} == logs


@pytest.mark.parametrize("value", ["None", "float('nan')", "'text'", "[]", "{}"])
def test_a_non_numeric_log_entry_does_not_change_the_verdict(agent, tokenizer, tmp_path, value):
    source = f"def reward_func(q, p, l):\n    return {{'rewards': [1.0], 'extra_logs': {{'kept': {value}}}}}"
    (tmp_path / "reward.py").write_text(source)
    output = one(agent(reward_file=str(tmp_path / "reward.py"), reward_log_keys=["kept"]), tokenizer, "5", "so 5")
    assert output["reward"] == 1.0 and output["extra_logs"]["verifier_unknown"] == 0.0
    assert output["extra_logs"]["kept"] == 0.0 and "extra_logs['kept']" in output[HINT]


@pytest.fixture(scope="module")
def tagged(tokenizer):
    """The tokenizer with tags as special tokens, and an end token."""
    import copy

    tagged = copy.deepcopy(tokenizer)
    tags = ["<answer>", "</answer>", "<think>", "</think>", "<eos>"]
    tagged.add_special_tokens({"eos_token": "<eos>", "additional_special_tokens": tags[:-1]})
    return tagged


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (PROMPT, "<think>hm</think><answer>5</answer><eos>"),
        (PROMPT + "<think>", "hm</think><answer>5</answer><eos>"),
        (PROMPT + "<think>\n", "hm</think> <answer>5</answer>"),
    ],
)
def test_tags_that_are_special_tokens_or_opened_by_the_prompt_count(agent, tagged, prompt, response):
    executor = agent(require_tags=["think", "answer"], format_reward=0.5)
    params = SimpleNamespace(max_tokens=100, logprobs=None)
    output = asyncio.run(executor.execute(prompt, "5", params, 100000, tagged, Script(tagged, [response])))
    assert output["extra_logs"]["verifier_format"] == 1.0 and output["reward"] == 1.5


def test_a_box_that_the_prompt_opens_holds_the_answer(agent, tokenizer):
    executor, params = agent(), SimpleNamespace(max_tokens=100, logprobs=None)
    script = Script(tokenizer, ["5}"])
    output = asyncio.run(executor.execute(PROMPT + r"\boxed{", "5", params, 100000, tokenizer, script))
    assert output["scores"] == 1.0


@pytest.mark.parametrize(
    ("gold", "response", "score"),
    [
        ("9 + 9 = <<9+9=18>>18\n#### 18", "9 and 9 are\n#### 18", 1.0),
        ("#### 1,800", "so\n#### 1800", 1.0),
        ("#### 18", "so\n#### 18\nThat is all.", 1.0),
        ("#### 18", "#### 17\n\n#### 18", 1.0),
        ("#### 18", "so\n#### 17", 0.0),
        ("#### 18", r"#### 17 \boxed{18}", 1.0),
        ("18", "so\n#### 18", 0.0),
    ],
)
def test_answers_after_hashes_count_if_the_gold_has_them(agent, tokenizer, gold, response, score):
    assert one(agent(), tokenizer, gold, response)["scores"] == score


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, -0.5])
@pytest.mark.parametrize("score", [-1.0, 0.0, 0.3, 0.5, 1.0])
def test_correct_means_the_same_in_the_agent_and_in_ktae(
    threshold, score, root, tmp_path, tokenizer, host, monkeypatch
):
    """`--algo.ktae.correct_threshold` decides in both, for users' reward files too."""
    import numpy as np

    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.ktae.batch import CORRECT as IN_KTAE
    from openrlhf_ktae.ktae.batch import plain_batch
    from openrlhf_ktae.verifier.agent import AgentExecutor

    monkeypatch.chdir(root)
    file = tmp_path / "reward.py"
    file.write_text(f"def reward_func(queries, prompts, labels):\n    return {{'rewards': [{score}]}}\n")
    words = ["--config", "configs/grpo_ktae/quickstart.yaml", "--reward.remote_url", str(file)]
    words += [] if threshold is None else ["--algo.ktae.correct_threshold", str(threshold)]
    args = parse_command_line(words)
    monkeypatch.setenv(CONFIG_VARIABLE, args.verifier.config.to_env()[CONFIG_VARIABLE])
    (output,) = rollouts(AgentExecutor(), tokenizer, ("7", "anything"))
    assert output["scores"] == score
    ids, mask, config = np.ones((1, 2), np.int64), np.ones((1, 2), bool), args.algo.ktae.config
    batch = plain_batch(ids, mask, np.array([score]), np.zeros(1, np.int64), config.correct_threshold)
    assert bool(output["extra_logs"]["verifier_correct"]) == (batch.side_B[0] == IN_KTAE) == (score > (threshold or 0))
