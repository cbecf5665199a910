"""The single-file script: its parts, and that it learns."""

import re
import sys

import pytest
import torch
from marks import SLOW


@pytest.fixture(scope="module")
def script(load_example):
    return load_example("whole_algorithm.py")


def run(script, monkeypatch, capsys, *options):
    """Run the script's main; return its lines and the accuracies before and after."""
    monkeypatch.setattr(sys, "argv", ["whole_algorithm.py", *options])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    shares = [float(re.search(r"([\d.]+)%", line).group(1)) for line in (lines[0], lines[-1])]
    return lines, *shares


def test_script_is_short_enough_to_read(examples):
    assert len((examples / "whole_algorithm.py").read_text().splitlines()) < 200


def test_two_steps_print_one_line_each_and_both_accuracies(script, monkeypatch, capsys):
    lines, *_ = run(script, monkeypatch, capsys, "--steps", "2", "--heldout", "20")
    assert [line.split()[:2] for line in lines[1:-1]] == [["step", "1"], ["step", "2"]]
    assert lines[0].startswith("held-out before:") and lines[-1].startswith("held-out after:")
    assert all("95 % interval" in line and "20 problems" in line for line in (lines[0], lines[-1]))


def test_same_seed_same_run(script, monkeypatch, capsys):
    def without_times(lines):
        return [re.sub(r"[\d.]+ s$", "", line) for line in lines]

    options = ("--steps", "1", "--heldout", "20", "--seed")
    first, second, other = (
        without_times(run(script, monkeypatch, capsys, *options, seed)[0]) for seed in ("1", "1", "2")
    )
    assert first == second != other


@SLOW
@pytest.mark.parametrize("variant", ["paper", "calibrated"])
def test_fifteen_steps_raise_heldout_accuracy_unless_the_rate_is_0(script, monkeypatch, capsys, variant):
    options = ("--steps", "15", "--variant", variant)
    _, before, after = run(script, monkeypatch, capsys, *options)
    assert after >= before + 15
    if variant == "paper":
        _, before, after = run(script, monkeypatch, capsys, *options, "--learning-rate", "0")
        assert abs(after - before) < 15  # two samples of 200 from the same policy


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" 9 + 7 gives 16 so \\boxed{ 16 }", 1.0),
        (" guess \\boxed{16}", 1.0),
        (" guess \\boxed{ 6 }", 0.0),
        (" 9 + 7 gives 16", 0.0),
        ("", 0.0),
    ],
)
def test_judge(script, text, score):
    assert script.judge(text, "16") == score


def test_group_normalised_is_zero_in_one_sided_groups(script):
    advantages = script.group_normalised(torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0]), 4)
    assert advantages.tolist() == pytest.approx([0, 0, 0, 0, 1.5, -0.5, -0.5, -0.5])


def test_clipped_loss_stops_pushing_outside_the_clip(script):
    old = torch.zeros(1, 4)
    new = torch.tensor([[0.5, -0.5, 0.5, 0.1]], requires_grad=True)
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0]]), torch.ones(1, 4)
    script.clipped_loss(new, old, advantages, mask).backward()
    grown = new.detach().exp()
    assert new.grad[0].tolist() == pytest.approx([0, 0, grown[0, 2].item() / 4, -grown[0, 3].item() / 4])


def test_ktae_distinguishes_tokens_unless_its_weight_is_0(script):
    torch.manual_seed(0)
    mask = torch.ones(8, 5, dtype=torch.long)
    scores = torch.tensor([1.0, 0] * 4)
    ids = torch.randint(5, 9, (8, 5))
    rollouts = script.Rollouts(ids, mask, mask, scores)
    plain = script.token_advantages(rollouts, 8, script.KTAEConfig(weight=0.0), [0, 1])
    keyed = script.token_advantages(rollouts, 8, script.KTAEConfig(), [0, 1])
    assert torch.equal(plain, script.group_normalised(scores, 8)[:, None].expand(8, 5))
    assert (keyed - plain).abs().max() > 0.01


def test_the_interval_contains_the_share_and_stays_within_bounds(script):
    assert script.accuracy(torch.ones(50)) == "100.0% (95 % interval 92.9% to 100.0%, 50 problems)"
    low, high = re.findall(r"([\d.]+)%", script.accuracy(torch.tensor([1.0] * 60 + [0.0] * 140)))[1:]
    assert (float(low), float(high)) == pytest.approx((24.1, 36.7), abs=0.1)
