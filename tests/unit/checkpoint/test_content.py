"""Options that name data, models and Python files of agents and rewards are compared by content, not by path."""

from __future__ import annotations

import pytest

from openrlhf_ktae.checkpoint.changes import content_of


def config(**paths):
    return {
        "data": {"prompt_dataset": str(paths["data"])},
        "actor": {"model_name_or_path": str(paths["model"])},
        "train": {"agent_func_path": str(paths["agent"])},
        "reward": {"remote_url": str(paths["reward"]), "model_name_or_path": None},
    }


@pytest.fixture
def paths(tmp_path):
    made = {name: tmp_path / name for name in ("data", "model")}
    made |= {name: tmp_path / f"{name}.py" for name in ("agent", "reward")}
    for name in ("model/config.json", "model/tokenizer/merges.txt", "data/part-0.jsonl", "agent.py", "reward.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    return made


@pytest.mark.parametrize(
    ("file", "option"),
    [
        ("model/config.json", "actor.model_name_or_path"),
        ("model/chat_template.jinja", "actor.model_name_or_path"),
        ("model/vocab.txt", "actor.model_name_or_path"),
        ("model/tokenizer/merges.txt", "actor.model_name_or_path"),
        ("model/modeling_own.py", "actor.model_name_or_path"),
        ("data/part-0.jsonl", "data.prompt_dataset"),
        ("data/part-1.arrow", "data.prompt_dataset"),
        ("data/part-1.csv", "data.prompt_dataset"),
        ("data/part-1.jsonl.gz", "data.prompt_dataset"),
        ("agent.py", "train.agent_func_path"),
        ("reward.py", "reward.remote_url"),
    ],
)
def test_a_changed_or_new_file_is_seen(file, option, paths, tmp_path):
    before = content_of(config(**paths))
    assert set(before) == {
        "data.prompt_dataset",
        "actor.model_name_or_path",
        "train.agent_func_path",
        "reward.remote_url",
    }
    (tmp_path / file).write_text("other")
    after = content_of(config(**paths))
    assert {name for name in before if before[name] != after[name]} == {option}


def test_a_renamed_file_counts_as_changed(paths):
    before = content_of(config(**paths))
    (paths["model"] / "config.json").rename(paths["model"] / "generation_config.json")
    assert content_of(config(**paths)) != before


@pytest.mark.parametrize("file", ["model/README.md", "model/.cache/lock", "model/LICENSE", "data/.gitattributes"])
def test_files_that_do_not_affect_training_may_change(file, paths, tmp_path):
    before = content_of(config(**paths))
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("other")
    assert content_of(config(**paths)) == before


def test_names_that_are_not_paths_have_no_content(paths):
    names = {"data": "org/data", "model": "org/model", "agent": None, "reward": "http://a.example/x,http://b.example"}
    assert content_of(config(**names)) == {}
    mixed = f"{paths['data']}@train, org/data"
    assert "data.prompt_dataset" not in content_of(config(**{**paths, "data": mixed}))
    assert "data.prompt_dataset" in content_of(config(**{**paths, "data": f"{paths['data']}@train"}))
