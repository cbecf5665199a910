"""Training curves: means over seeds, intervals, axes, and their text descriptions."""

from __future__ import annotations

import pytest

from openrlhf_ktae.cli.report import main
from openrlhf_ktae.compare.run_outcomes import read_run
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.report import curves as drawing


def run_of(path, steps=4, **metrics):
    record = RunRecord(path)
    for step in range(1, steps + 1):
        record.step(step, {name: value(step) for name, value in metrics.items()}, {})
    return path


def read_all(*paths):
    return [read_run(path) for path in paths]


def curve(runs, title):
    return next(one for one in drawing.curves(runs) if one.title == title)


def test_phases_are_means_over_seeds_and_say_so(tmp_path):
    names = {"timing/generation": 1.0, "timing/make_experience": 0.5, "timing/ppo_train": 2.0, "timing/broadcast": 0.25}
    for seed in (1, 2, 3):
        phases = {name: (lambda step, value=value, seed=seed: value * seed) for name, value in names.items()}
        run_of(tmp_path / f"seed-{seed}", **phases)
    phases = curve(read_all(*(tmp_path / f"seed-{seed}" for seed in (1, 2, 3))), "seconds per phase")
    assert phases.note == "mean of 3 seeds"
    means = {trace.name: trace.y[0] for trace in phases.figure.data}
    assert means == {"generation": 2.0, "experience": 1.0, "update": 4.0, "weights": 0.5}


def test_several_arms_are_compared_phase_by_phase(tmp_path):
    runs = [
        run_of(tmp_path / arm / f"seed-{seed}", **{"timing/broadcast": lambda step, seed=seed: float(seed)})
        for arm in "ab"
        for seed in (1, 3)
    ]
    weights = curve(read_all(*runs), "seconds: weights")
    assert [row[0] for row in weights.rows] == ["a (2 seeds)", "b (2 seeds)"]
    assert [trace.y[0] for trace in weights.figure.data if trace.meta != "interval"] == [2.0, 2.0]


def test_values_equal_up_to_rounding_have_a_plain_axis(tmp_path):
    runs = read_all(run_of(tmp_path / "run", **{"ktae/mixed_group_share": lambda step: 1 - 2.0**-50 * step}))
    low, high = curve(runs, "share of mixed groups").figure.layout.yaxis.range
    assert high - low == pytest.approx(0.2)
    zero = read_all(run_of(tmp_path / "zero", **{"actor_grad_norm": lambda step: 0.0 if step > 1 else 1e-300}))
    assert curve(zero, "gradient norm").figure.layout.yaxis.range[0] < 0


def test_wide_intervals_of_two_seeds_do_not_flatten_the_lines(tmp_path):
    runs = [
        run_of(tmp_path / f"seed-{seed}", **{"verifier_correct": lambda step, seed=seed: 0.2 + 0.1 * step + 0.2 * seed})
        for seed in (0, 1)
    ]
    correct = curve(read_all(*runs), "pass rate (share of right rollouts)")
    band, line = correct.figure.data
    assert max(band.y) > 1.5
    low, high = correct.figure.layout.yaxis.range
    assert -0.05 < low < 0.1
    assert max(line.y) < high < 1.05


def test_intervals_are_areas_without_marks(tmp_path):
    runs = [
        run_of(tmp_path / f"seed-{seed}", **{"rollout/reward_mean": lambda step, seed=seed: step / (3 + seed)})
        for seed in (1, 2, 3)
    ]
    band, line = curve(read_all(*runs), "training score").figure.data
    assert (band.mode, band.line.width, band.meta) == ("lines", 0, "interval")
    assert "[" in line.hovertext[0]


def test_nine_arms_have_nine_styles_and_no_legend_in_the_figure(tmp_path):
    runs = read_all(
        *(run_of(tmp_path / f"arm{i}", **{"rollout/reward_mean": lambda step, i=i: step + i}) for i in range(9))
    )
    styles = {(style["colour"], style["dash"]) for style in drawing.arm_styles(runs)}
    assert len(styles) == 9
    score = curve(runs, "training score")
    assert score.figure.layout.showlegend is False
    margin = score.figure.layout.margin
    assert score.figure.layout.height - margin.t - margin.b > 250, "too few pixels for the lines"


def test_a_curve_has_a_text_description(tmp_path):
    one = curve(read_all(run_of(tmp_path / "run", **{"entropy_loss": lambda step: step / 4})), "entropy")
    assert one.rows == [["run", "1 to 4", "0.25", "1", "0.625"]]
    assert one.spoken == "entropy over steps: run from 0.25 to 1"


def test_an_evaluation_without_an_interval_is_drawn(tmp_path):
    record = RunRecord(run_of(tmp_path / "run", **{"rollout/reward_mean": lambda step: 0.5}))
    for step in (0, 4):
        record.evaluation("during", step, {"eval_accuracy": 0.5, "eval_accuracy_low": None, "eval_accuracy_high": None})
    assert main([str(tmp_path / "run")]) == 0
    assert curve(read_all(tmp_path / "run"), "held-out accuracy").rows[0][2] == "50.0 %"
