"""Paths: commas, @ and ~ in them, absolute when printed, and a warning if Ray will delete them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from openrlhf_ktae.checkpoint.changes import content_of
from openrlhf_ktae.checks.data_columns import data_problems
from openrlhf_ktae.checks.memory_plan import make_plan
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.data.names import accept_any_path, entries
from openrlhf_ktae.launch.console import deleted_later, summary

ODD = ["ann@corp.com/train.jsonl", "a,b/train.jsonl", "one,two.jsonl", "at@.jsonl", "a@b,c@d/e,f@g.jsonl"]


def written(path, rows=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"input": f"{n} + 0 :", "label": str(n)}) + "\n" for n in range(rows)))
    return path


def parsed(root, monkeypatch, *words):
    monkeypatch.chdir(root)
    return parse_command_line(["--config", "configs/grpo/quickstart.yaml", "--eval.dataset", "", *words])


@pytest.mark.parametrize("name", ODD)
def test_a_data_set_may_have_any_name(name, tmp_path, root, monkeypatch):
    path = str(written(tmp_path / name))
    args = parsed(root, monkeypatch, "--data.prompt_dataset", path)
    assert list(data_problems(args)) == []
    assert ("golds", "16 of the first 16 can be read") in make_plan(args, "cpu", None).rows
    assert content_of({"data": {"prompt_dataset": path}}).keys() == {"data.prompt_dataset"}


@pytest.mark.parametrize("name", ODD)
def test_the_hosts_reader_accepts_any_name(name, tmp_path, host):
    from openrlhf.datasets.utils import blending_datasets

    strategy = SimpleNamespace(print=print, is_rank_0=lambda: True, args=SimpleNamespace(use_ms=False))
    load = accept_any_path(blending_datasets)
    assert accept_any_path(load) is load
    first, second = written(tmp_path / name, 3), written(tmp_path / "plain.jsonl", 4)
    for names, rows in ((f"{first}", 3), (f"{first},{second}", 7), (f"{second}, {first}", 7)):
        assert len(load(names, None, strategy)) == rows


def test_lists_are_split_where_the_host_splits_them(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    plain = f"{tmp_path}/x.jsonl"
    cases = {
        "a/b": [("a/b", "")],
        "a/b@sub , c/d": [("a/b", "sub"), ("c/d", "")],
        f"{folder}@sub": [(str(folder), "sub")],
        f"{plain},,": [(plain, ""), ("", ""), ("", "")],
        f"{tmp_path}/no@such.jsonl": [(f"{tmp_path}/no", "such.jsonl")],
    }
    for names, found in cases.items():
        assert entries(names) == found


def test_a_missing_file_keeps_its_full_path(tmp_path):
    (tmp_path / "ann@corp.com").mkdir()
    path = f"{tmp_path}/ann@corp.com/missing.jsonl"
    assert entries(path) == [(path, "")]


def test_a_reward_file_may_have_a_comma(tmp_path, root, monkeypatch):
    path = tmp_path / "a,b" / "reward.py"
    path.parent.mkdir()
    path.write_text("def reward_func(queries, prompts, labels):\n    return {'rewards': [1.0]}\n")
    args = parsed(root, monkeypatch, "--reward.remote_url", str(path))
    assert args.verifier.config.reward_file == str(path)


def test_home_is_expanded_in_yaml_too(tmp_path, root, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"include: {root}/configs/grpo/quickstart.yaml\n"
        "data: {prompt_dataset: '~/a.jsonl,~/b.jsonl', input_template: '~/{}'}\n"
        "actor: {model_name_or_path: ~/model}\nrun: {dir: ~/out}\n"
    )
    args = parse_command_line(["--config", str(file)])
    assert args.data.prompt_dataset == "/home/ann/a.jsonl,/home/ann/b.jsonl"
    assert args.actor.model_name_or_path == "/home/ann/model"
    assert (args.run.dir, args.ckpt.output_dir) == ("/home/ann/out", "/home/ann/out/model")
    assert args.data.input_template == "~/{}", "a template is not a path"


def places(directory):
    return SimpleNamespace(
        run=SimpleNamespace(dir=str(directory)),
        ckpt=SimpleNamespace(output_dir=f"{directory}/model", path=f"{directory}/checkpoints"),
        logger=SimpleNamespace(tensorboard_dir=f"{directory}/tensorboard"),
    )


@pytest.mark.parametrize("name", ["out", "with space", "it's", "$HOME"])
def test_the_last_lines_are_absolute_and_can_be_pasted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = summary(places(name)).splitlines()
    assert f"model              {tmp_path}/{name}/model" in lines
    repeat = next(line for line in lines if "repeat:" in line)
    assert shlex.split(repeat)[-1] == f"{tmp_path}/{name}/config.yaml"


def test_outputs_that_ray_deletes_are_reported_with_their_option(tmp_path, monkeypatch):
    folder = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0a1b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    texts = deleted_later(places("out"))
    assert [text.split(":")[0] for text in texts] == [
        "--run.dir out",
        "--ckpt.output_dir out/model",
        "--ckpt.path out/checkpoints",
    ]
    assert f"is {folder}/out, which Ray deletes" in texts[0]
    assert texts[0] in summary(places("out"))
    assert deleted_later(places(tmp_path / "out")) == []
    shutil.rmtree(Path(folder))
