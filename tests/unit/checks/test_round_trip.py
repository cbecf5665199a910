"""Models that cannot be saved, or lack embedding rows for tokens, are refused or repaired before anything loads."""

from __future__ import annotations

import json
import shutil

import pytest

from openrlhf_ktae.checks.round_trip import round_trip, without_embedding_row
from openrlhf_ktae.cli.options import parse_command_line


@pytest.fixture
def tried(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    model = tmp_path / "model"
    shutil.copytree("examples/quickstart/model", model)

    def call(file=None, change=None, *words):
        if file:
            path = model / file
            content = json.loads(path.read_text())
            changed = change(content)
            path.write_text(changed if isinstance(changed, str) else json.dumps(changed or content))
        words = ["--config", "configs/grpo/quickstart.yaml", "--actor.model_name_or_path", str(model), *words]
        return round_trip(parse_command_line(words))

    call.model = model
    return call


TOKENS, ROWS = 374, 384  # of the quickstart's model


def added(*tokens):
    """Fill the unused rows, then add `tokens`, like `add_tokens` without resizing the model."""
    names = [*(f"<fill{number}>" for number in range(TOKENS, ROWS)), *tokens]

    def change(content):
        template = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        content["added_tokens"] += [{"id": TOKENS + n, "content": name, **template} for n, name in enumerate(names)]

    return change


def test_the_quickstart_model_passes(tried):
    assert tried() == ([], [])


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("generation_config.json", lambda _: "{", "generation_config.json cannot be loaded"),
        ("generation_config.json", lambda _: "[1]", "generation_config.json cannot be loaded"),
        ("generation_config.json", lambda c: c.update(num_return_sequences=4), "do not support `num_return_sequences`"),
        ("generation_config.json", lambda c: c.update(cache_implementation="fast"), "Invalid `cache_implementation`"),
        ("tokenizer.json", lambda c: c["model"].update(type="Nonsense"), "tokenizer cannot be loaded"),
        (
            "tokenizer.json",
            added("<tool>"),
            "1 tokens without an embedding row in the model ('<tool>' is 384; 384 rows)",
        ),
        (
            "tokenizer.json",
            added("<a>", "<b>", "<c>", "<d>"),
            "4 tokens without an embedding row in the model ('<a>' is 384, '<b>' is 385, ",
        ),
        ("config.json", lambda c: c.update(vocab_size=300), "without an embedding row"),
    ],
)
def test_broken_models_are_refused_with_the_reason(file, change, problem, tried):
    problems, notes = tried(file, change)
    assert len(problems) == 1
    assert problem in problems[0]
    assert problems[0].startswith(f"--actor.model_name_or_path {tried.model}: ")
    assert notes == []


def test_the_refusal_names_the_fix(tried):
    (problem,), _ = tried("tokenizer.json", added("<tool>"))
    assert "model.resize_token_embeddings(len(tokenizer))" in problem


def test_a_generation_configuration_is_repaired_with_a_note(tried):
    problems, (note,) = tried("generation_config.json", lambda c: c.update(do_sample=False, temperature=0.6))
    assert problems == []
    assert "saved with do_sample true" in note


def test_other_models_need_embedding_rows_too(tried, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tried.model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 370}))
    words = ["--algo.advantage.estimator", "gae", "--critic.model_name_or_path", str(other)]
    (problem,), _ = tried(None, None, *words)
    assert problem.startswith(f"--critic.model_name_or_path {other}: the tokenizer of {tried.model} has 4 tokens")


def test_rows_without_a_token_are_accepted():
    assert without_embedding_row({"a": 0, "b": 1}, 151_936) == []
    assert without_embedding_row({"a": 5, "b": 1}, 2) == [("a", 5)]
