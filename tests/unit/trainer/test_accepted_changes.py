"""Changes accepted on resume, read back from the optimizer, the schedule and the KL controller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from marks import SLOW

SCRIPT = Path(__file__).with_name("resumed_rank.py")
COSINE = ["--actor.lr_scheduler", "cosine_with_min_lr", "--actor.lr_warmup_ratio", "0.1", "--actor.adam.lr", "1e-4"]


def option(name, *values, role="actor"):
    return [f"--{role}.{name}", *map(str, values)]


# role, the checkpoint's options, changed options, expected values (of parameter groups, or in `seen`)
CASES = [
    ("actor", [], [], {}),
    ("actor", [], option("adam.lr", 3e-5), {"lr": 3e-5, "initial_lr": 3e-5, "base_lrs": [3e-5, 3e-5]}),
    ("actor", [], option("adam.weight_decay", 0.1), {"weight_decay": 0.1}),
    ("actor", option("adam.weight_decay", 0.1), option("adam.weight_decay", 0), {"weight_decay": 0.0}),
    ("actor", [], option("adam.betas", 0.8, 0.9), {"betas": [0.8, 0.9]}),
    ("actor", [], option("adam.eps", 1e-6), {"eps": 1e-6}),
    ("actor", [], option("max_norm", 0.25), {"clip": 0.25}),
    ("actor", ["--ds.zero_stage", "2"], option("max_norm", 0.25), {"clip": 0.25}),
    ("actor", ["--ds.zero_stage", "2"], option("adam.lr", 3e-5), {"lr": 3e-5}),
    ("actor", COSINE, option("adam.lr", 3e-5), {"lr": 3e-5, "base_lrs": [3e-5, 3e-5]}),  # position 2 of 20: the peak
    ("actor", COSINE, option("lr_warmup_ratio", 0.2), {"lr": 5e-5}),  # halfway up the warm-up
    ("actor", COSINE, option("lr_scheduler", "linear"), {"lr": 1e-4}),
    ("actor", [*COSINE, *option("lr_warmup_ratio", 0)], option("min_lr_ratio", 0.9), {"lr": 9.975528e-05}),
    ("critic", [], option("adam.lr", 1e-3, role="critic"), {"base_lrs": [1e-3, 1e-3]}),
    ("critic", [], option("adam.weight_decay", 0.3, role="critic"), {"weight_decay": 0.3}),
    ("critic", [], option("max_norm", 7, role="critic"), {"clip": 7.0}),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory, root):
    folder = tmp_path_factory.mktemp("accepted")
    (folder / "cases.json").write_text(json.dumps([case[:3] for case in CASES]))
    done = subprocess.run([sys.executable, SCRIPT, folder], cwd=root, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "seen.json").read_text())


@SLOW
@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join([*c[1][:2], *c[2]]) or "none" for c in CASES])
def test_accepted_changes_reach_the_optimizer_and_the_schedule(number, seen):
    wanted, found = CASES[number][3], seen[number]
    before, after, then = found["before"], found["after"], found["then"]
    assert after["moments"] == before["moments"] > 0, "the checkpoint's moments must be kept"
    assert after["position"] == before["position"]
    assert after["next_rates"] == after["expected"], "the next update must use the new schedule's rate"
    if not wanted:
        assert after == before, "without changes all must be bit-identical"
    for name, value in wanted.items():
        held = after[name] if name in after else after["groups"][0][name]
        assert held == pytest.approx(value)
        other = before[name] if name in before else before["groups"][0][name]
        assert held != other or name == "lr"
        still = then[name] if name in then else then["groups"][0][name]
        assert name == "lr" or still == held, "an update must not change it"
    assert after["groups"][1]["weight_decay"] == 0.0, "biases and norms have no decay"


@pytest.fixture
def trainer(host):
    """Build the host's KL controllers below our code that loads a checkpoint."""
    from openrlhf.trainer.ppo_utils.kl_controller import AdaptiveKLController, FixedKLController

    from openrlhf_ktae.trainer.checkpointing import CheckpointingTrainer

    def made(init, target=None, horizon=10_000, changes=()):
        one = CheckpointingTrainer.__new__(CheckpointingTrainer)
        options = SimpleNamespace(init_coef=init, target=target, horizon=horizon)
        run = SimpleNamespace(accepted_changes=list(changes))
        one.args = SimpleNamespace(algo=SimpleNamespace(kl=options), run=run)
        one.kl_ctl = AdaptiveKLController(init, target, horizon) if target else FixedKLController(init)
        one.experience_maker = SimpleNamespace(shuffle=SimpleNamespace(set_state=lambda _: None))
        return one

    return made


@pytest.mark.parametrize(
    ("before", "now", "value"),
    [
        ({"init": 0.1}, {"init": 0.1}, 0.1),
        ({"init": 0.1}, {"init": 0.5, "changes": ["algo.kl.init_coef"]}, 0.5),
        ({"init": 0.1, "target": 6}, {"init": 0.1, "target": 6}, "come to"),
        ({"init": 0.1, "target": 6}, {"init": 0.1, "target": 3, "changes": ["algo.kl.target"]}, "come to"),
        (
            {"init": 0.1, "target": 6},
            {"init": 0.1, "target": 6, "horizon": 5, "changes": ["algo.kl.horizon"]},
            "come to",
        ),
        ({"init": 0.1, "target": 6}, {"init": 0.4, "target": 6, "changes": ["algo.kl.init_coef"]}, 0.4),
        ({"init": 0.1, "target": 6}, {"init": 0.1, "changes": ["algo.kl.target"]}, 0.1),
    ],
)
def test_accepted_changes_reach_the_kl_controller(before, now, value, trainer):
    first = trainer(**before)
    first.kl_ctl.update(12.0, 1000)
    reached = first.kl_ctl.value
    second = trainer(**now)
    second.load_training_state({"kl_coefficient": reached, "shuffle": None, "random": None})
    assert second.kl_ctl.value == (reached if value == "come to" else value)
    second.kl_ctl.update(12.0, 1000)
    if "target" in now:
        error = min(max(12.0 / now["target"] - 1, -0.2), 0.2)
        start = reached if value == "come to" else value
        assert second.kl_ctl.value == pytest.approx(start * (1 + error * 1000 / now.get("horizon", 10_000)))


@pytest.mark.parametrize(("key", "kept"), [("", True), ("eval_aime_pass1", True), ("eval_math_pass1", False)])
def test_the_best_evaluation_uses_the_requested_metric(key, kept, host):
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    from openrlhf_ktae.trainer.checkpointing import CheckpointingTrainer

    one = type("Trainer", (CheckpointingTrainer, BasePPOTrainer), {})
    one = one.__new__(one)
    one.args = SimpleNamespace(ckpt=SimpleNamespace(best_metric_key=key))
    one.best_eval_metric_key, one.best_eval_metric_value = key, float("-inf")
    one.restore_best_checkpoint_state({"best_eval_metric_key": "eval_aime_pass1", "best_eval_metric_value": 0.7})
    assert one.best_eval_metric_key == (key or "eval_aime_pass1")
    assert (one.best_eval_metric_value == 0.7) == kept
