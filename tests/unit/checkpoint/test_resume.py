"""Resuming picks the newest complete checkpoint and says why, or refuses with the fix."""

from __future__ import annotations

import pytest
from written import TRAIN, dies_while_writing, write

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.checkpoint.changes import differences
from openrlhf_ktae.checkpoint.resume import AUTO, NEVER, check_options, decide, other_versions
from openrlhf_ktae.checkpoint.write import begin, commit, supersede_all


def tear(checkpoint):
    path = next(checkpoint.path.glob("_actor/*/model.pt"))
    path.write_text(path.read_text()[:3])


def test_auto_resumes_from_the_newest_and_reports_it(tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 4)
    decision = decide(AUTO, tmp_path)
    assert decision.checkpoint.step == 4
    assert decision.lines == [f"resuming from {tmp_path}/global_step4 (step 4, the newest)"]


def test_auto_reports_skipped_checkpoints_with_reasons(tmp_path):
    whole, torn = write(tmp_path, 2), write(tmp_path, 4)
    other = write(tmp_path, 6)
    tear(torn)
    (other.path / "manifest.json").unlink()
    (tmp_path / ".writing-global_step8").mkdir()
    (tmp_path / "latest").write_text("global_step6")
    decision = decide(AUTO, tmp_path)
    assert decision.checkpoint.path == whole.path
    text = "\n".join(decision.lines)
    assert "skipped global_step8: was being written when the run ended" in text
    assert "skipped global_step6: has no manifest.json" in text
    assert "skipped global_step4: _actor/global_step4/model.pt has 3 bytes instead of 9" in text


@pytest.mark.parametrize("latest", [None, "", "global_step99", "\x00", "../elsewhere"])
def test_the_file_latest_is_optional(tmp_path, latest):
    write(tmp_path, 2)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_text(latest)
    assert decide(AUTO, tmp_path).checkpoint.step == 2


def test_auto_starts_from_scratch_without_checkpoints(tmp_path):
    decision = decide(AUTO, tmp_path / "no such folder")
    assert decision.checkpoint is None
    assert "starting from scratch" in decision.lines[0]


def test_auto_starts_from_scratch_after_a_crash_during_the_first_write(tmp_path):
    (tmp_path / "first").mkdir()
    assert dies_while_writing(tmp_path / "first", 20, 2) is None
    decision = decide(AUTO, tmp_path / "first")
    assert decision.checkpoint is None
    assert "skipped global_step2: was being written" in decision.lines[0]


def test_auto_refuses_if_all_checkpoints_are_damaged(tmp_path):
    tear(write(tmp_path, 2))
    with pytest.raises(Refusal, match=r"none|no checkpoint.*--resume never starts"):
        decide(AUTO, tmp_path)


def test_auto_skips_checkpoints_of_an_earlier_run(tmp_path):
    """After `--resume never` and a crash before the first checkpoint, `auto` does not resume an earlier run."""
    old = write(tmp_path, 20)
    supersede_all(tmp_path)
    decision = decide(AUTO, tmp_path)
    assert decision.checkpoint is None
    assert f"from scratch here; --resume {old.path} takes it" in decision.lines[0]
    new = write(tmp_path, 2)
    assert decide(AUTO, tmp_path).checkpoint.path == new.path
    assert decide(str(old.path), tmp_path).checkpoint.path == old.path
    supersede_all(tmp_path)
    assert decide(AUTO, tmp_path).checkpoint is None
    assert decide(str(tmp_path), tmp_path).checkpoint.path == new.path


@pytest.mark.parametrize("text", ["", "x", "1e3", "\x00"])
def test_a_malformed_anew_file_is_ignored(tmp_path, text):
    write(tmp_path, 2)
    (tmp_path / "anew").write_text(text)
    assert decide(AUTO, tmp_path).checkpoint.step == 2


def test_never_ignores_all_checkpoints(tmp_path):
    tear(write(tmp_path, 2))
    assert decide(NEVER, tmp_path).checkpoint is None


def test_a_path_is_a_checkpoint_a_folder_of_them_or_a_run(tmp_path):
    root = tmp_path / "run" / "checkpoints"
    write(root, 2)
    write(root, 4)
    for path, step in ((root / "global_step2", 2), (root, 4), (tmp_path / "run", 4)):
        assert decide(str(path), tmp_path / "elsewhere").checkpoint.step == step


def test_a_path_that_cannot_be_resumed_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    torn = write(tmp_path / "torn", 2)
    tear(torn)
    for path, message in (
        ("/no/such", "no such folder"),
        (tmp_path / "empty", "give one, auto or never"),
        (torn.path, "has 3 bytes instead of 9; --resume auto"),
    ):
        with pytest.raises(Refusal, match=message):
            decide(str(path), tmp_path)


def of_ranks(root, step, ranks, there):
    """Write a checkpoint of a run with `ranks` one-device nodes that has the parts of only `there` ranks."""
    tag = f"global_step{step}"
    folder = begin(root, tag)
    names = [f"_actor/{tag}/rank{rank}.pt" for rank in range(there)]
    for name in (*names, *(f"random/actor_rank{rank:05d}.pt" for rank in range(there))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    config = {"actor": {"num_nodes": ranks, "num_gpus_per_node": 1}}
    return commit(root, tag, step, {"config": config, "data": {}, "versions": {}})


def test_a_partial_checkpoint_of_an_earlier_release_is_skipped(tmp_path):
    """Its manifest matches its files, but the host raises `KeyError: 'global_step'` after loading all models."""
    whole, half = of_ranks(tmp_path, 2, ranks=2, there=2), of_ranks(tmp_path, 4, ranks=2, there=1)
    decision = decide(AUTO, tmp_path)
    assert decision.checkpoint.path == whole.path
    why = "has the parts of only 1 of 2 actor ranks: their nodes did not share a file system"
    assert f"skipped global_step4: {why}" in decision.lines
    with pytest.raises(Refusal, match=why):
        decide(str(half.path), tmp_path)


def of_host(root, *tags, latest):
    for tag in tags:
        (root / "_actor" / tag).mkdir(parents=True)
    if latest is not None:
        (root / "_actor" / "latest").write_text(latest)


def test_a_plain_openrlhf_checkpoint_can_be_resumed(tmp_path):
    of_host(tmp_path, "global_step10", "global_step20", latest="global_step20")
    for choice in (AUTO, str(tmp_path)):
        decision = decide(choice, tmp_path)
        assert (decision.checkpoint.path, decision.checkpoint.step) == (tmp_path, 20)
        assert "cannot be verified" in decision.lines[-1]


@pytest.mark.parametrize("latest", [None, "", "global_step30"])
def test_a_plain_checkpoint_without_latest_is_refused_with_its_tags(tmp_path, latest):
    """The host raises a KeyError or AssertionError only after loading all models."""
    of_host(tmp_path, "global_step10", "global_step20", latest=latest)
    with pytest.raises(Refusal, match="Write one of these names into it: global_step10, global_step20"):
        decide(AUTO, tmp_path)


def test_a_checkpoint_with_only_an_export_is_skipped(tmp_path):
    checkpoint = write(tmp_path, 2)
    import shutil

    shutil.rmtree(checkpoint.path / "_actor")
    for choice in (AUTO, str(checkpoint.path)):
        with pytest.raises(Refusal, match="has no _actor"):
            decide(choice, tmp_path)


def test_changed_options_are_refused_with_the_difference_and_the_fixes(tmp_path):
    checkpoint = write(tmp_path, 2)
    check_options(checkpoint, TRAIN, {}, [])
    with pytest.raises(Refusal) as refusal:
        check_options(checkpoint, {"train": {"seed": 2}}, {}, [])
    for text in ("--train.seed: 1 -> 2", "--run.accept_changes train.seed", "--resume never"):
        assert text in str(refusal.value)
    accepted = {"train": {**TRAIN["train"], "max_epochs": 2}}
    checkpoint.manifest.about["config"]["train"]["max_epochs"] = 1
    assert check_options(checkpoint, accepted, {}, ["--train.max_epochs"]) == ["train.max_epochs"]


CANNOT = [
    ("train.seed", 1, 2, {}),
    ("actor.optim", "adam", "muon", {}),
    ("critic.optim", "adam", "muon", {}),
    ("ds.param_dtype", "bf16", "fp32", {}),
    ("ds.zero_stage", 3, 2, {}),
    ("actor.num_gpus_per_node", 1, 2, {}),
    ("ds.lora.rank", 0, 8, {}),
    ("train.enable_ema", False, True, {}),
    ("rollout.n_samples_per_prompt", 8, 4, {"algo": {"dynamic_filtering_enable": True}}),
    ("rollout.n_samples_per_prompt", 8, 4, {"rollout": {"vllm_generate_batch_size": 32, "batch_size": 16}}),
]


def tree(name, value, more=None):
    group, *path = name.split(".")
    nested = value
    for part in reversed(path):
        nested = {part: nested}
    merged = {**(more or {})}
    return {**merged, group: {**merged.get(group, {}), **nested}}


@pytest.mark.parametrize(("name", "old", "new", "more"), CANNOT)
def test_accepted_changes_that_cannot_be_applied_are_refused(name, old, new, more, tmp_path):
    checkpoint = write(tmp_path, 2)
    checkpoint.manifest.about["config"] = tree(name, old, more)
    with pytest.raises(Refusal, match=f"--run.accept_changes {name}: cannot be applied") as refusal:
        check_options(checkpoint, tree(name, new, more), {}, [name])
    assert "--resume never" in str(refusal.value)


def test_turning_off_ema_and_changing_unbuffered_groups_can_be_applied(tmp_path):
    checkpoint = write(tmp_path, 2)
    for name, old, new in (("train.enable_ema", True, False), ("rollout.n_samples_per_prompt", 8, 4)):
        checkpoint.manifest.about["config"] = tree(name, old)
        assert check_options(checkpoint, tree(name, new), {}, [name]) == [name]


def test_other_weights_cannot_be_accepted_and_another_tokenizer_can(tmp_path):
    """Training continues with the checkpoint's weights."""
    name, checkpoint = "actor.model_name_or_path", write(tmp_path, 2)
    config, data = tree(name, "m"), {name: "model.safetensors:a tokenizer.json:b"}
    checkpoint.manifest.about.update(config=config, data=data)
    assert check_options(checkpoint, config, {name: "model.safetensors:a tokenizer.json:c"}, [name]) == [name]
    with pytest.raises(Refusal, match=r"cannot be applied.*weights.*--resume never"):
        check_options(checkpoint, config, {name: "model.safetensors:z tokenizer.json:b"}, [name])


def test_which_options_may_differ():
    before = {"train": {"num_episodes": 1, "seed": 1}, "logger": {"x": 1}, "eval": {"steps": 3}, "ckpt": {"path": "a"}}
    now = {"train": {"num_episodes": 2, "seed": 1}, "logger": {"x": 2}, "eval": {"steps": 9}, "ckpt": {"path": "b"}}
    assert differences(before, now, {}, {}) == {}
    rates = [{"actor": {"adam": {"lr": rate}}} for rate in (1e-6, 1e-5)]
    assert differences(*rates, {}, {}) == {"actor.adam.lr": "1e-06 -> 1e-05"}


def test_every_option_that_may_differ_is_an_option():
    from openrlhf_ktae.checkpoint.changes import BY_CONTENT, FREE, FREE_GROUPS, IN_CHECKPOINT, SHARDED, flat
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.record.directory import nested_options

    words = "--pretrain m --prompt_data d --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label"
    options = flat(nested_options(parse_command_line(words.split())))
    assert not {*FREE, *BY_CONTENT, *SHARDED} - options.keys() - {"local_rank"}
    assert not IN_CHECKPOINT.keys() - options.keys()
    assert {name.split(".")[0] for name in options} >= set(FREE_GROUPS)


def test_a_path_may_change_and_its_content_may_not():
    name = "data.prompt_dataset"
    old, new = {"data": {"prompt_dataset": "a.jsonl"}}, {"data": {"prompt_dataset": "b.jsonl"}}
    assert differences(old, new, {name: "same"}, {name: "same"}) == {}
    assert differences(old, old, {name: "one"}, {name: "other"}) == {name: "its content has changed"}
    assert differences(old, new, {name: "one"}, {name: "other"}) == {name: "a.jsonl -> b.jsonl"}
    assert differences(old, new, {}, {}) == {name: "a.jsonl -> b.jsonl"}


def test_another_number_of_ranks_needs_a_universal_checkpoint():
    before = {"actor": {"num_nodes": 1}, "ds": {"use_universal_ckpt": False}}
    assert differences(before, {"actor": {"num_nodes": 2}, "ds": {"use_universal_ckpt": False}}, {}, {})
    assert differences(before, {"actor": {"num_nodes": 2}, "ds": {"use_universal_ckpt": True}}, {}, {}) == {
        "ds.use_universal_ckpt": "false -> true"
    }


def test_changed_package_versions_are_reported(tmp_path):
    checkpoint = write(tmp_path, 2)
    assert other_versions(checkpoint, {"packages": {"torch": "1"}}) == []
    assert "torch 1 -> 2" in other_versions(checkpoint, {"packages": {"torch": "2"}})[0]
