"""Prompts and golds reach a run exactly as they are in its file."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from openrlhf_ktae.verifier.config import VerifierConfig

ROOT_MODEL = "examples/quickstart/model"
BIG = 2**100 + 12345
# Label in the file -> label that must reach the verifier.
JSON_LABELS = {
    '"2024-01-05"': "2024-01-05",
    '"2024-01-05T10:00:00"': "2024-01-05T10:00:00",
    '"12:30:00"': "12:30:00",
    "12345678901234567890": 12345678901234567890,
    str(BIG): BIG,
    "7": 7,
    "0.5": 0.5,
    "0.12345678901234567890123": "0.12345678901234567890123",
    "1e400": "1e400",
    '"NA"': "NA",
    '"null"': "null",
    '"007"': "007",
    '["1/2", "0.5"]': ["1/2", "0.5"],
    "true": True,
}
CSV_LABELS = ["7", "NA", "null", "nan", "007", "1.50", "2024-01-05", str(BIG), "-0", "TRUE", "1e5", '"a, b"']


@pytest.fixture(scope="module")
def prompts(host):
    from openrlhf_ktae.trainer.ppo_utils import prompts

    return prompts


@pytest.fixture(scope="module")
def tokenizer(root):
    return AutoTokenizer.from_pretrained(root / ROOT_MODEL)


@pytest.fixture
def make(prompts, tokenizer, monkeypatch):
    """Build the data set of one source as the host does."""
    from openrlhf.datasets import utils

    monkeypatch.setattr(utils, "load_dataset", partial(prompts.load_rows, utils.load_dataset))

    def made(source, template=None, split="train", tokenizer=tokenizer, **options):
        data = {
            "input_key": "input",
            "label_key": "label",
            "apply_chat_template": False,
            "chat_template_args": [],
            "max_len": 64,
            "long_prompts": "drop",
            **options,
        }
        args = SimpleNamespace(
            data=SimpleNamespace(**data),
            rollout=SimpleNamespace(max_new_tokens=32),
            verifier=SimpleNamespace(config=VerifierConfig(reward_file=data.pop("reward_file", ""))),
        )
        strategy = SimpleNamespace(args=args, is_rank_0=lambda: False, print=lambda *_: None)
        rows = utils.blending_datasets(str(source), None, strategy, 1, dataset_split=split)
        return prompts.KTAEPromptDataset(rows, tokenizer, strategy, template)

    return made


@pytest.mark.parametrize("written", JSON_LABELS)
@pytest.mark.parametrize("place", ["file", "array", "folder"])
def test_json_labels_arrive_unchanged(make, tmp_path, written, place):
    rows = [f'{{"input": "1 + 1 :", "label": {written}}}'] * 3
    if place == "array":
        path = tmp_path / "rows.json"
        path.write_text("[" + ",\n".join(rows) + "]")
    else:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(rows))
    found = make(tmp_path if place == "folder" else path)
    assert found.labels == [JSON_LABELS[written]] * 3
    assert type(found.labels[0]) is type(JSON_LABELS[written])


def test_csv_labels_are_texts(make, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("input,label\n" + "".join(f"1 + 1 :,{label}\n" for label in CSV_LABELS))
    assert make(path).labels == [label.strip('"') for label in CSV_LABELS]


def test_the_checks_and_the_loader_read_the_same_labels(make, tmp_path):
    from openrlhf_ktae.data.prompt_files import text_rows

    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(f'{{"input": "1 :", "label": {written}}}' for written in JSON_LABELS))
    assert [row["label"] for row in text_rows(path)] == make(path).labels


def test_splits_of_a_folder(make, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"input": f"{split} :", "label": "2024-01-05"}))
    assert make(tmp_path, split="test").prompts == ["test :"]
    assert make(tmp_path, split="train").prompts == ["train :"]


def test_times_of_a_typed_format_are_refused(make, tmp_path):
    from datetime import datetime

    import pyarrow as pa
    from pyarrow import parquet

    from openrlhf_ktae.base.errors import TrainingStopped

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"input": ["1 :"], "label": [datetime(2024, 1, 5)]}), path)
    with pytest.raises(TrainingStopped, match=r"--data.label_key label: holds times .*; write them as text"):
        make(path)


LONG = "compute " + "1 + " * 40 + "1 :"


def with_long_prompts(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["compute 1 + 2 :", LONG, "compute 3 + 4 :", LONG]
    path.write_text("\n".join(json.dumps({"input": text, "label": str(n)}) for n, text in enumerate(texts)))
    return path


def test_prompts_without_room_for_a_response_are_left_out_and_counted(make, tmp_path):
    found = make(with_long_prompts(tmp_path))
    assert found.prompts == ["compute 1 + 2 :", "compute 3 + 4 :"] and found.labels == ["0", "2"]
    assert len(found) == len(found.datasources) == len(found.images) == 2
    (note,) = found.notes
    assert "2 of 4 prompts" in note and "--data.max_len 64" in note and "--data.long_prompts cut" in note


def test_long_prompts_are_cut_if_requested(make, tmp_path, tokenizer):
    found = make(with_long_prompts(tmp_path), long_prompts="cut")
    assert len(found) == 4 and "cut" in found.notes[0]
    ids = tokenizer(found.prompts[1], add_special_tokens=False)["input_ids"]
    assert len(ids) <= 32 and LONG.endswith(found.prompts[1].strip())


def test_no_note_if_all_prompts_fit(make, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": "compute 1 :", "label": "1"}))
    assert make(path).notes == []


def test_the_run_stops_if_no_prompt_fits(make, tmp_path):
    from openrlhf_ktae.base.errors import TrainingStopped

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": LONG, "label": "1"}))
    with pytest.raises(TrainingStopped, match=r"1 of 1 prompts .* raise --data.max_len"):
        make(path)


# Template, prompt -> the model's input.
TEMPLATES = {
    ("Solve {}!", "x"): "Solve x!",
    ("Solve {problem}!", "x"): "Solve x!",
    (r"Put it in \boxed{}. {}", "x"): r"Put it in \boxed{}. x",
    (r"Put it in \boxed{}. {problem}", "a {} b"): r"Put it in \boxed{}. a {} b",
    (r"Put it in \boxed{{}}. {}", "x"): r"Put it in \boxed{}. x",
    ("{} <think>", "{x}"): "{x} <think>",
}


@pytest.mark.parametrize(("template", "prompt"), TEMPLATES)
def test_templates(make, tmp_path, template, prompt):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": prompt, "label": "1"}))
    assert make(path, template).prompts == [TEMPLATES[template, prompt]]


class Chatty:
    """A tokenizer whose chat template prints its input."""

    def apply_chat_template(self, chat, tokenize, add_generation_prompt, **arguments):
        return json.dumps([[turn["content"] for turn in chat], arguments])

    def __call__(self, texts, **_):
        return {"input_ids": [[0] for _ in texts]}


def test_a_template_and_a_chat_template_combine(make, tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1"}]
    path.write_text(json.dumps({"input": turns, "label": "2"}))
    words = ["enable_thinking=false", "style=plain"]
    found = make(path, "Box it. {}", tokenizer=Chatty(), apply_chat_template=True, chat_template_args=words)
    assert json.loads(found.prompts[0]) == [
        ["Be brief.", "Box it. 1 + 1"],
        {"enable_thinking": False, "style": "plain"},
    ]


def test_a_reward_function_gets_the_columns_of_its_row(make, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": "1 + 1 :", "label": "2", "level": 3}))
    (label,) = make(path, reward_file="reward.py").labels
    assert label.label == "2" and label.row["level"] == 3
