"""`cli.eval --model` with an existing result folder: resumed or refused. No engine is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from openrlhf_ktae.cli.eval import main
from openrlhf_ktae.evaluation import pipeline as evaluate
from openrlhf_ktae.evaluation.generation import Completion

PROBLEMS = [{"problem": "1 + 1", "answer": "2"}, {"problem": "1 + 2", "answer": "3"}]


class Engine:
    """Answers every request with the same text."""

    capacity = 4

    def __init__(self):
        self.requests, self._waiting = 0, []

    def submit(self, request):
        self.requests += 1
        self._waiting.append(request.key)

    def finished(self):
        done, self._waiting = self._waiting, []
        return [Completion(key, "so \\boxed{2}", 5, False) for key in done]

    def close(self):
        pass


@pytest.fixture
def engine(monkeypatch):
    one = Engine()
    monkeypatch.setattr(evaluate, "open_engine", lambda *_: one)
    return one


@pytest.fixture
def folder(tmp_path, root):
    shutil.copytree(root / "examples/quickstart/model", tmp_path / "model")
    write_problems(tmp_path / "suite" / "mine.jsonl", PROBLEMS)
    (tmp_path / "template.txt").write_text("Q: {problem}\nA:")
    return tmp_path


def write_problems(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(folder, *words):
    model = ["--model", str(folder / "model"), "--template", str(folder / "template.txt"), "--backend", "cpu"]
    model += ["--max_new_tokens", "40"]
    where = ["--benchmarks", "mine", "--benchmark_dir", str(folder / "suite"), "--output", str(folder / "out")]
    return main([*model, *where, *words])


def train_again(folder):
    path = folder / "model" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def edit_config(folder):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 5.0}))


def edit_problem(folder):
    write_problems(folder / "suite" / "mine.jsonl", [{**PROBLEMS[0], "problem": "2 + 0"}, PROBLEMS[1]])


def edit_gold(folder):
    write_problems(folder / "suite" / "mine.jsonl", [{**PROBLEMS[0], "answer": "4"}, PROBLEMS[1]])


def edit_template(folder):
    (folder / "template.txt").write_text("Question: {problem}\nAnswer:")


EDITS = {
    "model_digest": (train_again, edit_config),
    "problems_digest": (edit_problem, edit_gold),
    "template_text": (edit_template,),
}


@pytest.mark.parametrize(("name", "edit"), [(name, edit) for name, edits in EDITS.items() for edit in edits])
def test_results_with_other_contents_are_refused(name, edit, folder, engine, capsys):
    assert evaluated(folder) == 0
    assert evaluated(folder) == 0
    assert engine.requests == 2, "the same command must not generate again"
    edit(folder)
    capsys.readouterr()
    assert evaluated(folder) == 2
    error = capsys.readouterr().err
    assert f"other settings ({name} " in error
    assert "--overwrite" in error
    assert engine.requests == 2
    assert evaluated(folder, "--overwrite") == 0
    assert engine.requests == 4


def test_results_of_another_dtype_are_refused(folder, engine, capsys):
    assert evaluated(folder) == 0
    assert evaluated(folder, "--dtype", "fp32") == 2
    assert "dtype 'bf16' instead of 'fp32'" in capsys.readouterr().err


def test_a_folder_of_links_to_a_models_files_has_the_same_digest(folder):
    (folder / "linked").mkdir()
    for path in (folder / "model").iterdir():
        (folder / "linked" / path.name).symlink_to(path)
    (folder / "model" / "checkpoints").mkdir()
    (folder / "model" / "checkpoints" / "optimizer.bin").write_bytes(b"1")
    assert evaluate.model_digest(str(folder / "linked")) == evaluate.model_digest(str(folder / "model"))
    assert evaluate.model_digest("Qwen/Qwen2.5-Math-7B") is None


@pytest.mark.parametrize("left", [{}, []])
def test_results_of_an_earlier_version_are_refused_naming_missing_settings(folder, engine, capsys, left):
    assert evaluated(folder) == 0
    path = folder / "out" / "settings.json"
    new = ("dtype", "model_digest", "problems_digest", "template_text")
    if left == {}:
        left = {name: value for name, value in json.loads(path.read_text()).items() if name not in new}
    path.write_text(json.dumps(left))
    assert evaluated(folder) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--overwrite" in error
    if left:
        assert all(f"{name} is not recorded there" in error for name in new)
