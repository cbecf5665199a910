"""A step's rollouts written, read back and rescored, with the real experience maker and tokenizer, without a model."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from rollout_batches import N, batched, maker, rollouts

from openrlhf_ktae.cli.rescore import main
from openrlhf_ktae.record.recorded import find, read_groups
from openrlhf_ktae.record.rollouts import METADATA_KEY, RolloutRecorder, TokenTexts
from openrlhf_ktae.report.rescoring import SHUFFLED, Arm, key_token_values, recorded_config, tensors


def recorded(module, tokenizer, directory, *words, step=10, size=4, **limits):
    one = maker(module, *words)
    one.tokenizer = tokenizer
    one.keep_credit = True
    experiences = one.compute_advantages_and_returns(batched(rollouts(prompts=3), size))
    about = {"ktae": asdict(one.args.algo.ktae.config), "ktae_enabled": True}
    settings = {"every": 5, "max_mb": 10, "max_groups": 0, **limits}
    recorder = RolloutRecorder(directory, about=about, **settings)
    return recorder, recorder.write(step, one.credit, tokenizer), experiences, one


def test_recorded_values_are_the_trained_ones(module, tokenizer, tmp_path):
    _, path, experiences, _ = recorded(module, tokenizer, tmp_path)
    groups = list(read_groups([path]))
    assert [(group.step, group.group, len(group.rows)) for group in groups] == [(10, 0, N), (10, 1, N), (10, 2, N)]
    rows = [row for group in groups for row in group.rows]
    advantages = [e.advantages[i][e.action_mask[i].bool()] for e in experiences for i in range(len(e.index))]
    sequences = [e.sequences[i][e.attention_mask[i].bool()] for e in experiences for i in range(len(e.index))]
    for row, expected, sequence in zip(rows, advantages, sequences, strict=True):
        assert torch.equal(torch.tensor(row["advantages"]), expected)
        assert torch.allclose(torch.tensor(row["k"]) + torch.tensor(row["advantages_without_k"]), expected, atol=1e-6)
        assert row["prompt_ids"] + row["token_ids"] == sequence.tolist()
        assert all(row["action"])
        assert "".join(row["token_texts"]) == tokenizer.decode(row["token_ids"])
        assert row["prompt"] == f"prompt {row['group']}"
    assert {row["score"] for row in rows} == {0.0, 1.0}
    assert any(k != 0 for row in rows for k in row["k"])
    assert groups[0].about["special_ids"] == sorted(set(tokenizer.all_special_ids))


def test_micro_batches_change_nothing(module, tokenizer, tmp_path):
    paths = [recorded(module, tokenizer, tmp_path / str(size), size=size)[1] for size in (1, 12)]
    assert parquet.read_table(paths[0]).equals(parquet.read_table(paths[1]))


def test_shadow_records_k_that_was_not_added(module, tokenizer, tmp_path):
    _, path, _, _ = recorded(module, tokenizer, tmp_path, "--algo.ktae.shadow", "true")
    for group in read_groups([path]):
        for row in group.rows:
            assert row["advantages"] == row["advantages_without_k"]
            assert any(row["k"])


def test_the_size_is_bounded(module, tokenizer, tmp_path):
    recorder, path, _, one = recorded(module, tokenizer, tmp_path, max_groups=1)
    assert len(list(read_groups([path]))) == 1
    recorder._limit = path.stat().st_size + 10
    assert [recorder.wants(step) for step in (14, 15)] == [False, True]
    assert recorder.write(15, one.credit, tokenizer) is None
    assert not recorder.wants(20)
    assert [p.name for p in recorder.directory.iterdir()] == [path.name]


def test_nothing_is_kept_by_default(module):
    one = maker(module)
    one.compute_advantages_and_returns(batched(rollouts(), 4))
    assert one.credit is None


def test_a_character_of_several_tokens_is_shown_at_the_first():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    ids = list("a é 漢!".encode())
    texts = TokenTexts(Bytes()).of(ids)
    assert "".join(texts) == "a é 漢!"
    assert texts[2:4] == ["é", ""]


def test_rescoring_reproduces_the_recorded_k(module, tokenizer, tmp_path, capsys):
    recorded(module, tokenizer, tmp_path, "--algo.ktae.variant", "reference", "--algo.ktae.h3", "0.5")
    words = [
        str(tmp_path),
        "--ablations",
        "--arm",
        "mine:variant=calibrated,p_max=0.5",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(words) == 0
    result = json.loads((tmp_path / "o" / "rescore.json").read_text())
    assert result["reproduced"] < 1e-6
    assert (result["groups"], result["mixed_groups"], result["steps"]) == (3, 3, [10])
    arms = result["arms"]
    assert arms["recorded"]["mean_abs_k"]["value"] > 0
    assert arms["recorded"]["correlation"]["value"] == pytest.approx(1)
    assert arms["reference"]["mean_abs_k"]["value"] != arms["recorded"]["mean_abs_k"]["value"], "h3 differs"
    assert arms["centred"]["rollout_share"]["value"] == pytest.approx(0, abs=1e-9)
    assert arms["calibrated"]["mean_abs_k"]["value"] == 0, "groups of 2 and 2 are no evidence at p_max 0.1"
    assert arms["mine"]["mean_abs_k"]["value"] > 0
    assert arms["recorded"]["highest"][0]["id"] == 7, "only correct rollouts contain this id"
    assert arms["recorded"]["lowest"][0]["id"] == 8
    assert "| centred |" in capsys.readouterr().out


def rewritten(path, change):
    table = change(parquet.read_table(path))
    parquet.write_table(table, path)


def other_tokenizer(table):
    about = json.loads(table.schema.metadata[METADATA_KEY]) | {"tokenizer": "other"}
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()})


def about(**metadata):
    def change(table):
        changed = json.loads(table.schema.metadata[METADATA_KEY]) | metadata
        return table.replace_schema_metadata({METADATA_KEY: json.dumps(changed).encode()})

    return lambda path: rewritten(path, change)


def value(column, one):
    """Set a value of a column, or of the list in its second row, to `one`."""

    def change(table):
        rows = table.to_pylist()
        if isinstance(rows[1][column], list):
            rows[1][column][0] = one
        else:
            rows[1][column] = one
        return pa.Table.from_pylist(rows, schema=table.schema)

    return lambda path: rewritten(path, change)


def shorter_k(table):
    rows = table.to_pylist()
    rows[1]["k"] = rows[1]["k"][:-1]
    return pa.Table.from_pylist(rows, schema=table.schema)


DAMAGE = {
    "missing column": (lambda path: rewritten(path, lambda t: t.drop_columns(["score", "k"])), "no column score, k"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a complete parquet file"),
    "foreign": (lambda path: rewritten(path, lambda t: t.replace_schema_metadata({})), "no metadata openrlhf_ktae"),
    "empty": (lambda path: rewritten(path, lambda t: t.slice(0, 0)), "contains no rollouts"),
    "lengths": (lambda path: rewritten(path, shorter_k), "lengths differ"),
    "mixed tokenizers": (lambda path: rewritten(path, other_tokenizer), "a different tokenizer"),
    "null in a list": (value("k", None), "k holds a null"),
    "null in the texts": (value("token_texts", None), "token_texts holds a null"),
    "no response": (value("response", None), "response holds a null"),
    "negative id": (value("token_ids", -3), "token_ids holds an id below 0"),
    "negative id of the prompt": (value("prompt_ids", -3), "prompt_ids holds an id below 0"),
    "nan": (value("k", float("nan")), "k holds a number that is not finite"),
    "infinity": (value("advantages_without_k", float("inf")), "advantages_without_k holds a number that is not"),
    "infinite score": (value("score", float("-inf")), "score holds an infinite number"),
    "special ids": (about(special_ids=["a"]), "metadata: special_ids is ['a']"),
    "special ids that are none": (about(special_ids=None), "metadata: special_ids is None"),
    "step": (about(step="ten"), "metadata: step is ten"),
    "options of KTAE": (about(ktae=[1]), "metadata: ktae is [1]"),
    "no steps": (lambda path: [one.unlink() for one in path.parent.iterdir()], "--ktae.record_rollouts N"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_gives_one_message(damage, message, module, tokenizer, tmp_path, capsys):
    recorded(module, tokenizer, tmp_path, step=5)
    _, path, _, _ = recorded(module, tokenizer, tmp_path, step=10)
    damage(path)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/run"], "no such file or folder"),
        (["{tmp}", "--arm", "x"], "write NAME:OPTION=VALUE"),
        (["{tmp}", "--arm", "x:h9=1"], "unknown KTAE option 'h9'"),
        (["{tmp}", "--arm", "x:h1=-1"], "h1=-1"),
        (["{tmp}", "--arm", "recorded:h1=0"], "--arm recorded:h1=0: this arm name is taken; give another name"),
        (["{tmp}", "--arm", "calibrated:h1=0"], "calibrated:h1=0: this arm name is taken"),
        (["{tmp}", "--ablations", "--arm", "centred:h1=0"], "centred:h1=0: this arm name is taken"),
        (["{tmp}", "--arm", "x:h1=0", "--arm", "x:h1=2"], "x:h1=2: this arm name is taken"),
        (["{tmp}", "--arm", "x:h1=[1"], "--arm x:h1=[1: '[1' cannot be read"),
        (["{tmp}", "--arm", "x:h1=[1]"], "--arm x:h1=[1]: "),
        (["{tmp}", "--arm", "x:variant=2024-99-99"], "'2024-99-99' cannot be read"),
        (["{tmp}", "--arm", "x:variant=2024-01-01"], "'2024-01-01' is a date"),
        (["{tmp}", "--arm", "x:variant={a: b}"], "is a dict"),
        (["{tmp}", "--output", "{tmp}/file/a"], "file is a file; give a folder"),
    ],
)
def test_refused(words, message, module, tokenizer, tmp_path, capsys):
    recorded(module, tokenizer, tmp_path)
    (tmp_path / "file").write_text("")
    assert main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_records_of_other_options_are_not_rescored_as_one(module, tokenizer, tmp_path, capsys):
    recorded(module, tokenizer, tmp_path / "a", "--algo.ktae.variant", "paper")
    recorded(module, tokenizer, tmp_path / "b", "--algo.ktae.variant", "paper", step=20)
    recorded(module, tokenizer, tmp_path / "c", "--algo.ktae.variant", "reference", "--algo.ktae.h3", "0.5", step=30)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert main([str(tmp_path / name) for name in "abc"]) == 2
    error = capsys.readouterr().err
    assert "step 30 was recorded with different KTAE options from step 10" in error
    assert "variant reference instead of paper" in error
    assert "h3 0.5 instead of" in error
    assert error.count("\n") == 1


def test_find_orders_by_step(module, tokenizer, tmp_path):
    for step in (100, 5, 20):
        recorded(module, tokenizer, tmp_path, step=step)
    assert [path.stem for path in find([tmp_path])] == ["step-000005", "step-000020", "step-000100"]


def rescored(tmp_path, *words):
    assert main([*words, "--output", str(tmp_path / "o")]) == 0
    return json.loads((tmp_path / "o" / "rescore.json").read_text())


def test_a_step_named_twice_counts_once(module, tokenizer, tmp_path):
    _, path, _, _ = recorded(module, tokenizer, tmp_path / "run")
    once = rescored(tmp_path, str(tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for again in (tmp_path / "run", path, tmp_path / "link", tmp_path / "run" / ".." / "run"):
        assert rescored(tmp_path, str(tmp_path / "run"), str(again)) == once


def test_the_largest_difference_from_the_recorded_k_is_reported(module, tokenizer, tmp_path, capsys):
    _, path, _, _ = recorded(module, tokenizer, tmp_path)
    value("k", 2.0)(path)  # only in the first group
    assert rescored(tmp_path, str(tmp_path))["reproduced"] > 0.1
    assert "reproduced to 0.0" not in capsys.readouterr().out


def test_shuffled_labels_are_shuffled_in_each_group(module, tokenizer, tmp_path):
    """Id 7 is in right rollouts only, so its K is large with true labels and small on average with shuffled ones."""
    _, path, _, _ = recorded(module, tokenizer, tmp_path)
    groups = list(read_groups([path]))
    config = recorded_config(groups[0].about)
    arrays = tensors(groups[0])
    known, shuffled = Arm("own", config), Arm(SHUFFLED, config, shuffled=True)
    of_seven = [(key_token_values(arrays, shuffled, seed) * (arrays.ids_GT == 7)).sum() for seed in range(20)]
    own = (key_token_values(arrays, known) * (arrays.ids_GT == 7)).sum()
    assert own > 0
    assert np.mean(of_seven) < own / 2
    assert len({round(k, 6) for k in of_seven}) > 1, "seeds must give different orders"
    arms = rescored(tmp_path, str(tmp_path), "--ablations")["arms"]
    assert arms[SHUFFLED]["k_correct"] != arms["recorded"]["k_correct"]
