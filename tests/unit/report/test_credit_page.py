"""Content of the token-credit page: figures, escaping, sizes. tests/browser covers its look and behaviour."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from pyarrow import parquet
from recorded_groups import ABOUT, HOSTILE, group, hostile, large, plain

from openrlhf_ktae.cli.report import main
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.record.rollouts import METADATA_KEY, schema_of
from openrlhf_ktae.report.credit_data import MEASURES, group_data, step_settings
from openrlhf_ktae.report.credit_page import MAX_BYTES, write_credit_pages


class Scripts(HTMLParser):
    """Collects the elements that an HTML parser finds, and the contents of scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags[-1:] == ["script"] and self.cdata_elem:
            self.scripts[-1] += data


def parsed(path):
    scripts = Scripts()
    scripts.feed(path.read_text(encoding="utf-8"))
    return scripts, json.loads(scripts.scripts[0])


def test_figures_of_a_token():
    data = group_data(plain())
    place = data["texts"].index(" maybe")
    assert data["counts"][place] == [0, 4, 4, 0, 0, 4]
    for variant in ("paper", "reference", "calibrated"):
        measures = dict(zip(MEASURES, data["variants"][variant]["measures"][place], strict=True))
        assert measures["fisher"] == pytest.approx(2 / 70, rel=1e-3)
        assert measures["information_gain"] == pytest.approx(1)
        assert measures["value"] < 0
        assert data["variants"][variant]["measures"][data["texts"].index(" +")][-1] == 0, "every rollout has it"
    assert data["sides"] == {"rollouts": [4, 4], "tokens": [20, 24]}
    assert [one["verdict"] for one in data["rollouts"]] == ["correct"] * 4 + ["wrong"] * 4


def test_centring_is_shown_as_the_subtracted_mean():
    data = group_data(
        group([(1, [" a", " b"]), (0, [" a", " c"])], about={"ktae": {"variant": "paper", "centre": True}})
    )
    variant = data["variants"]["paper"]
    assert variant["shifts"][0] == pytest.approx(variant["measures"][data["texts"].index(" b")][-1] / 2)
    assert data["variants"]["reference"]["shifts"] is None


@pytest.mark.parametrize(("enabled", "shadow"), [(True, False), (True, True), (False, False)])
def test_a_run_whose_k_came_from_shuffled_labels_says_so(enabled, shadow):
    about = {"ktae_enabled": enabled, "shadow": shadow}
    assert step_settings({**ABOUT, **about, "shuffled": True})["shuffled"] is enabled
    assert step_settings({**ABOUT, **about})["shuffled"] is False


def test_one_sided_groups_have_no_credit():
    data = group_data(group([(1, [" a"]), (1, [" b"])]))
    assert not data["mixed"]
    assert {measures[-1] for measures in data["variants"]["paper"]["measures"]} == {0.0}


def test_hostile_texts_are_escaped(tmp_path):
    (path,) = write_credit_pages([hostile()], tmp_path, HOSTILE[0])
    scripts, data = parsed(path)
    assert len(scripts.scripts) == 2, "the data and the page's own script"
    assert "img" not in scripts.tags
    texts = data["groups"][0]["texts"]
    assert texts == list(dict.fromkeys(HOSTILE))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', path.read_text(encoding="utf-8"))[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_group_of_16_by_800_fits_into_one_file(tmp_path):
    (path,) = write_credit_pages([large()], tmp_path, "large")
    assert path.stat().st_size <= MAX_BYTES
    assert not re.search(r"https?://", path.read_text(encoding="utf-8")), "pages must load nothing"


def test_large_content_is_split_into_files(tmp_path):
    groups = [large(seed=seed, distinct=4000) for seed in range(9)]
    paths = write_credit_pages(groups, tmp_path, "many")
    assert [path.name for path in paths[:2]] == ["tokens.html", "tokens-2.html"]
    assert all(path.stat().st_size <= MAX_BYTES for path in paths)
    assert sum(len(parsed(path)[1]["groups"]) for path in paths) == 9
    assert parsed(paths[1])[1]["files"] == [path.name for path in paths]


def test_split_files_do_not_overwrite_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.report.credit_page.MAX_BYTES", 200_000)
    (tmp_path / "tokens-2.html").write_text("of another run")
    pages = write_credit_pages([large(rollouts=2)], tmp_path, "t", taken=["tokens-2.html"])
    assert [path.name for path in pages] == ["tokens.html", "tokens-3.html"]
    assert parsed(pages[0])[1]["files"] == ["tokens.html", "tokens-3.html"]
    assert (tmp_path / "tokens-2.html").read_text() == "of another run"


def test_first_groups_of_each_step_are_shown_and_all_are_counted(tmp_path):
    groups = [plain(step, number) for step in (3, 6) for number in range(5)]
    (path,) = write_credit_pages(groups, tmp_path, "few", max_groups=2)
    data = parsed(path)[1]
    assert [(one["step"], one["group"]) for one in data["groups"]] == [(3, 0), (3, 1), (6, 0), (6, 1)]
    top = data["tops"]["3"]["paper"]["highest"][0]
    assert (top["text"], top["count"]) == (" gives", 5 * 4)


def test_a_group_too_large_for_a_file_is_split_between_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.report.credit_page.MAX_BYTES", 300_000)
    paths = write_credit_pages([large()], tmp_path, "huge")
    assert len(paths) > 1
    assert sum(len(one["rollouts"]) for path in paths for one in parsed(path)[1]["groups"]) == 16


def test_stored_responses_become_groups(tmp_path):
    rows = [
        {"benchmark": "a", "id": 1, "gold": "7", "problem": "3 + 4?", "response": text, "score": score}
        for text, score in (("it gives 7", 1), ("maybe 8", 0), ("it gives 7", 1), ("maybe 9", 0))
    ]
    rows.append({"benchmark": "a", "id": 2, "gold": "4", "response": "\\boxed{4}"})
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--responses", str(path), "--output", str(tmp_path / "out")]) == 0
    groups = parsed(tmp_path / "out" / "tokens.html")[1]["groups"]
    assert [len(one["rollouts"]) for one in groups] == [4, 1]
    assert groups[1]["rollouts"][0]["verdict"] == "correct", "graded because the row has no score"
    maybe = groups[0]["texts"].index("maybe")
    assert groups[0]["variants"]["paper"]["measures"][maybe][-1] < 0


def to_file(one, folder):
    folder.mkdir(parents=True)
    schema = schema_of(pa).with_metadata({METADATA_KEY: json.dumps(one.about).encode()})
    parquet.write_table(pa.Table.from_pylist(one.rows, schema=schema), folder / f"step-{one.step:06d}.parquet")


def steps_of(directory, last=3):
    record = RunRecord(directory)
    for step in range(1, last + 1):
        record.step(step, {"rollout/reward_mean": step / 10, "timing/generation": 0.1}, {})
    return directory


def test_a_run_page_draws_what_was_recorded(tmp_path):
    run = steps_of(tmp_path / "run")
    assert main([str(run)]) == 0
    html = (run / "report" / "runs.html").read_text()
    assert "training score" in html
    assert "held-out accuracy" not in html.split("<script>")[0]


def test_seeds_of_an_arm_are_drawn_with_intervals(tmp_path):
    runs = [steps_of(tmp_path / arm / f"seed-{seed}") for arm in ("grpo", "ktae") for seed in (1, 2, 3)]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "runs.html").read_text()
    assert "grpo (3 seeds)" in html
    assert "ktae: 95 % interval" in html


def test_only_seed_folders_of_one_arm_are_seeds(tmp_path):
    runs = [steps_of(tmp_path / experiment / "quickstart") for experiment in ("a", "b")]
    runs += [steps_of(tmp_path / top / "x/grpo" / f"seed-{seed}") for top in ("c", "d") for seed in (1, 2)]
    runs += [steps_of(tmp_path / "other"), tmp_path / "c/../other"]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    scripts = Scripts()
    scripts.feed((tmp_path / "out" / "runs.html").read_text())
    names = {line["name"] for figure in json.loads(scripts.scripts[1]) for line in figure["data"]}
    arms = {"c/x/grpo (2 seeds)", "d/x/grpo (2 seeds)"}
    assert {name for name in names if "seeds" in name} == arms
    assert {"a/quickstart", "b/quickstart", "other"} <= names


def test_every_run_has_its_own_token_pages(tmp_path, capsys):
    prompts = {"a/grpo/seed-1": "one", "b/grpo/seed-1": "two", "b/grpo/seed-2": "three", "grpo-2": "four"}
    for run, prompt in prompts.items():
        to_file(group([(1, [" a"]), (0, [" b"])], prompt=prompt), tmp_path / run / "rollouts")
    words = [str(tmp_path / run) for run in prompts]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    written = {path.name: parsed(path)[1]["groups"][0]["prompt"] for path in (tmp_path / "out").iterdir()}
    assert written == {
        "tokens-a-grpo-seed-1.html": "one",
        "tokens-b-grpo-seed-1.html": "two",
        "tokens-b-grpo-seed-2.html": "three",
        "tokens-grpo-2.html": "four",
    }


def test_a_hostile_run_name_is_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)> {{ 7 * 7 }} '\"&"
    runs = [steps_of(tmp_path / name), steps_of(tmp_path / "other")]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    scripts = Scripts()
    scripts.feed((tmp_path / "out" / "runs.html").read_text())
    assert "img" not in scripts.tags
    assert "49" not in (tmp_path / "out" / "runs.html").read_text().split("<main>")[1].split("<script>")[0]
    assert name in json.dumps(json.loads(scripts.scripts[1])).replace('\\"', '"')


def empty_run(tmp_path):
    RunRecord(tmp_path / "run").plan(4)


def torn_run(tmp_path):
    steps_of(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st\n')


def torn_rollouts(tmp_path):
    steps_of(tmp_path / "run")
    (tmp_path / "run" / "rollouts").mkdir()
    (tmp_path / "run" / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1 and no more")


BAD_RUNS = {
    "no such": (lambda tmp: None, "not a run directory"),
    "no steps": (empty_run, "a run directory without steps"),
    "torn record": (torn_run, "damaged"),
    "torn rollouts": (torn_rollouts, "not a complete parquet file"),
}


@pytest.mark.parametrize(("make", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_a_bad_run_gives_one_message(make, message, tmp_path, capsys):
    make(tmp_path)
    assert main([str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_without_plotly_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main([str(steps_of(tmp_path / "run"))]) == 2
    assert "pip install '.[report]'" in capsys.readouterr().err


def test_bad_options_are_refused(capsys):
    assert main([]) == 2
    assert "give run directories, or --responses FILE" in capsys.readouterr().err
    assert main(["x", "--groups", "0"]) == 2
    assert "--groups: '0' must be" in capsys.readouterr().err
