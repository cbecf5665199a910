"""User input, one row per case: the input and the text that the user sees (docs/reliability.md)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.base.cut_off import require_complete
from openrlhf_ktae.checkpoint.changes import cannot_be_applied, differences
from openrlhf_ktae.checkpoint.model_files import make_savable
from openrlhf_ktae.cli.options import expand_home, parse_command_line
from openrlhf_ktae.data.names import entries
from openrlhf_ktae.data.prompt_files import look, text_rows
from openrlhf_ktae.data.templates import chat_arguments, fill, has_one_place
from openrlhf_ktae.launch.console import deleted_later, summary
from openrlhf_ktae.launch.nodes import with_absolute_places
from openrlhf_ktae.processes.deaths import innermost
from openrlhf_ktae.verifier.extract import extract_answer
from openrlhf_ktae.verifier.formats import keeps_format, opening_of
from openrlhf_ktae.verifier.golds import gold_forms
from openrlhf_ktae.verifier.judging.judge import judge
from openrlhf_ktae.verifier.user_reward import Call, called, kind_of, read_result, reward_function

MINIMAL = "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --run.dir r".split()


def seen(what):
    """Return the result or the error as text."""
    try:
        return str(what())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def answer(*reasons, finished=True):
    outputs = [SimpleNamespace(finish_reason=reason, token_ids=[1, 2, 3]) for reason in reasons]
    return SimpleNamespace(outputs=outputs, finished=finished)


def generation(**settings):
    from transformers import GenerationConfig

    made = GenerationConfig()
    vars(made).update(settings)
    return f"{make_savable(made)} | do_sample {made.do_sample}"


def served(body):
    from openrlhf_ktae.verifier.http_reward import read

    return json.dumps(read(json.loads(body)))


def changed(name, before, now, **others):
    old, new = ({"rollout": {"batch_size": 4}, **others} for _ in range(2))
    group, leaf = name.split(".", 1)
    old[group], new[group] = {**old.get(group, {}), leaf: before}, {**new.get(group, {}), leaf: now}
    found = differences(old, new, {}, {})
    return {"differs": found, "cannot": cannot_be_applied(found, old, new, {}, {})}


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def labels(tmp_path, name, content):
    path = written(tmp_path, name, content)
    look(str(path))
    return [row["label"] for row in text_rows(path)]


def gaps(tmp_path, name, content):
    return look(str(written(tmp_path, name, content))).gaps


def judged(prompt, response, gold):
    found = extract_answer(opening_of(prompt) + response, gold=gold).answer
    return judge(gold_forms(gold), found).status if found is not None else "no answer"


def rewarded(tmp_path, source, label="18", row=None):
    function = reward_function(str(written(tmp_path, "reward.py", source)))
    result = called(function, Call("p r", "p", "r", label, row or {}))
    return kind_of(function), read_result(result, kind_of(function))


def options(*words):
    return parse_command_line([*MINIMAL, *words])


def in_group():
    return ExceptionGroup("unhandled errors in a TaskGroup", [KeyError("answer"), ValueError("second")])


def caused():
    error = RuntimeError("a step failed")
    error.__cause__ = in_group()
    return error


def places(tmp_path, **paths):
    made = SimpleNamespace(
        run=SimpleNamespace(dir=paths.get("run", str(tmp_path))),
        ckpt=SimpleNamespace(output_dir=str(tmp_path / "model"), path=str(tmp_path / "checkpoints")),
        logger=SimpleNamespace(tensorboard_dir=None),
    )
    return made


def absolute(tmp_path, monkeypatch, names):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "a,b.jsonl", "{}")
    written(tmp_path, "c.jsonl", "{}")
    args = options("--prompt_data", names)
    return with_absolute_places(args).data.prompt_dataset.replace(str(tmp_path), "HERE")


PICKY = "def my_check(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n    return {}"
TRL = "import numpy as np\nasync def correct(completions, label, **kwargs):\n    return {}"
CASES = {
    # finish reasons
    "one sample of two was aborted": (lambda **_: require_complete(answer("stop", "abort")), "3 tokens (abort)"),
    "a reason that vLLM may add": (lambda **_: require_complete(answer("tool_calls")), "(tool_calls); it is not used"),
    "an engine that gave nothing": (
        lambda **_: require_complete(None),
        "CutOff: vLLM cut off a response after 0 tokens",
    ),
    "the last output says that it is not finished": (
        lambda **_: require_complete(answer("stop", finished=False)),
        "no finish reason",
    ),
    # generation configurations
    "greedy with four sequences": (lambda **_: generation(num_return_sequences=4), "saved with do_sample true"),
    "a cache that does not exist": (
        lambda **_: generation(cache_implementation="fast"),
        "saved with its token ids only",
    ),
    "sampling as it should be": (lambda **_: generation(do_sample=True, temperature=0.6), " | do_sample True"),
    # answers of a reward server
    "a count that is wrong one level down": (lambda **_: served('{"rewards": [[1.0, 0.0]]}'), "one finite number"),
    "a number as a text": (lambda **_: served('{"rewards": "1.0"}'), "returned the reward 1.0; it must be one"),
    "rewards by name": (lambda **_: served('{"rewards": {"0": 1.0}}'), "it must be one finite number"),
    "no scores at all": (lambda **_: served('{"rewards": [1], "scores": []}'), "returned the score []"),
    "true": (lambda **_: served('{"rewards": [true]}'), '{"reward": 1.0, "scores": 1.0'),
    "logs that are no numbers": (
        lambda **_: served('{"rewards": 1, "extra_logs": {"a": null, "b": [1, 2], "c": NaN, "d": 2}}'),
        '"extra_logs": {"d": 2.0}',
    ),
    "a number beyond floats": (lambda **_: served('{"rewards": 1e999}'), "returned the reward inf"),
    # options changed for a resumed run
    "an option set for the first time": (
        lambda **_: changed("train.replay", None, "runs/a"),
        "none -> runs/a",
    ),
    "another optimizer": (lambda **_: changed("actor.optim", "adam", "muon"), "holds the other optimizer's moments"),
    "another group size while groups wait": (
        lambda **_: changed("rollout.n_samples_per_prompt", 4, 8, algo={"dynamic_filtering_enable": True}),
        "the checkpoint has buffered rollouts in groups of the other size",
    ),
    "another folder for checkpoints": (lambda **_: changed("ckpt.path", "a", "b"), "{'differs': {}"),
    "an accepted option that does not exist": (
        lambda **_: options("--run.accept_changes", "actor.adam.learning_rate"),
        "no such option",
    ),
    # data files
    "hexadecimal and thousands in a CSV": (
        lambda tmp_path, **_: labels(tmp_path, "a.csv", 'input,label\n1,0x10\n1,"1,000"\n1,1_000\n'),
        "['0x10', '1,000', '1_000']",
    ),
    "a CSV as Excel saves it": (
        lambda tmp_path, **_: labels(tmp_path, "a.csv", b"\xef\xbb\xbfinput,label\r\n1,007\r\n"),
        "['007']",
    ),
    "a line break within a cell": (
        lambda tmp_path, **_: labels(tmp_path, "a.csv", 'input,label\n1,"a\nb"\n2,c\n'),
        "['a\\nb', 'c']",
    ),
    "JSONL with a byte order mark": (
        lambda tmp_path, **_: labels(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"label": 1}'),
        "begins with a byte order mark",
    ),
    "NaN as a label": (
        lambda tmp_path, **_: gaps(tmp_path, "a.jsonl", '{"input": "1", "label": 1}\n{"input": "1", "label": NaN}\n'),
        "{'label': 'row 2 has nothing'}",
    ),
    "a key twice in a row": (
        lambda tmp_path, **_: labels(tmp_path, "a.jsonl", '{"input": "1", "label": 1, "label": 2}\n'),
        "[2]",
    ),
    "a label of 400 digits": (
        lambda tmp_path, **_: labels(tmp_path, "a.jsonl", '{"label": 1' + "0" * 400 + "}"),
        "[1" + "0" * 400 + "]",
    ),
    # special tokens and openings
    "a prompt that opens <answer>": (lambda **_: judged("... <answer>", " 42 </answer>", "42"), "correct"),
    "a prompt that opens <think> and a line": (
        lambda **_: judged("<|assistant|>\n<think>\n", "so </think> \\boxed{4}", "4"),
        "correct",
    ),
    "thinking that is never closed": (lambda **_: judged("<think>", "\\boxed{4} or", "4"), "no answer"),
    "a box that the prompt opens": (lambda **_: judged("The answer is \\boxed{ ", "18}.", "18"), "correct"),
    "tags of an example earlier in the prompt": (lambda **_: opening_of("<answer> 1 </answer>\nQ: 2"), ""),
    "the format with a prompt that opened the tag": (
        lambda **_: keeps_format("<think>a</think><answer>4</answer>", ("think", "answer"), True),
        "True",
    ),
    # templates
    "braces of JSON around the place": (lambda **_: fill('{{"q": "{}"}}', "1 + 1"), '{"q": "1 + 1"}'),
    "a prompt that holds the mark itself": (lambda **_: fill("Q: {problem}", "{} and {problem}"), "{} and {problem}"),
    "two places": (lambda **_: has_one_place("{} or {}"), "False"),
    "Python's False for a chat template": (
        lambda **_: chat_arguments(["enable_thinking=False"]),
        "{'enable_thinking': False}",
    ),
    "a name that is none": (
        lambda **_: options("--data.apply_chat_template", "--data.chat_template_args", "enable-thinking=false"),
        "--data.chat_template_args enable-thinking=false: give NAME=VALUE",
    ),
    # nested causes
    "errors of tasks at the same time": (lambda **_: innermost(in_group()), "KeyError: 'answer'"),
    "below another error": (lambda **_: innermost(caused()), "KeyError: 'answer'"),
    "an error without words": (lambda **_: innermost(ZeroDivisionError()), "ZeroDivisionError:"),
    # paths
    "a comma in a relative path, and a split": (
        lambda tmp_path, monkeypatch, **_: absolute(tmp_path, monkeypatch, "a,b.jsonl,c.jsonl@train"),
        "HERE/a,b.jsonl,HERE/c.jsonl@train",
    ),
    "a mail address as a folder": (
        lambda tmp_path, **_: (tmp_path / "me@host").mkdir() or entries(f"{tmp_path}/me@host"),
        "me@host', '')",
    ),
    "home folders in a list": (
        lambda monkeypatch, **_: monkeypatch.setenv("HOME", "/h") or expand_home("~/a,~/b@c,x~/d"),
        "/h/a,/h/b@c,x~/d",
    ),
    "outputs where Ray unpacks a job": (
        lambda tmp_path, **_: deleted_later(
            places(tmp_path, run="/tmp/ray/s/runtime_resources/working_dir_files/_ray_pkg_1/runs")
        ),
        "which Ray deletes later; give an absolute path",
    ),
    # reward functions
    "verl's under another name": (
        lambda tmp_path, **_: rewarded(tmp_path, PICKY.format('{"score": 1, "acc": True, "pred": "18"}')),
        "('verl', (1.0, 1.0, {'acc': True}))",
    ),
    "a pair instead of a number": (
        lambda tmp_path, **_: rewarded(tmp_path, PICKY.format('0.5, {"acc": 1}')),
        "returned the reward (0.5, {'acc': 1}); it must be one finite number",
    ),
    "TRL's, asynchronous, an array": (
        lambda tmp_path, **_: rewarded(tmp_path, TRL.format("np.array([1.0])"), row={"label": "18"}),
        "('trl', (1.0, 1.0, {}))",
    ),
    "TRL's None, for a prompt it does not judge": (
        lambda tmp_path, **_: rewarded(tmp_path, TRL.format("[None]"), row={"label": "18"}),
        "returned the reward [None]",
    ),
    "two rewards for one answer": (
        lambda **_: read_result({"rewards": torch.tensor([0.0, 1.0])}, "openrlhf"),
        "returned the reward tensor([0., 1.]); it must be one finite number",
    ),
    "logs in a list": (lambda **_: read_result({"rewards": 1, "extra_logs": [3]}, "openrlhf"), "(1.0, 1.0, {})"),
    # GSM8K's answers
    "thousands and a currency": (lambda **_: judged("", "so\n#### $1,234", "a\n#### 1234"), "correct"),
    "words after the answer's line": (lambda **_: judged("", "#### 18\nI hope so", "#### 18"), "correct"),
    "a full stop": (lambda **_: judged("", "so\n#### 18.", "#### 18"), "correct"),
    "a box wins over hashes": (lambda **_: judged("", "#### 17\n\\boxed{18}", "#### 18"), "correct"),
    # lines to paste
    "a run directory with a quote and a dollar": (
        lambda tmp_path, **_: summary(places(tmp_path, run=str(tmp_path / "it's $HOME"))),
        "it'\"'\"'s $HOME/config.yaml'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_the_user_sees(case, tmp_path, monkeypatch, host):
    what, expected = CASES[case]
    found = seen(lambda: what(tmp_path=tmp_path, monkeypatch=monkeypatch))
    assert expected in found if expected else found == expected
