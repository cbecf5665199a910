"""Training on recorded rollouts: rollouts are restored exactly, and unusable records are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from rollout_batches import BASE, N, batched, by_rollout, maker, rollouts

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.record.recorded import read_groups
from openrlhf_ktae.record.rollouts import METADATA_KEY, RolloutRecorder

STEPS, PROMPTS = 2, 3


@pytest.fixture(scope="module")
def model(root):
    return root / "examples/quickstart/model"


@pytest.fixture(scope="module")
def tokenizer(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def sampled(seed, prompts=PROMPTS):
    """Return rollouts of every kind: late, failed, unknown and truncated."""
    samples = rollouts(prompts, seed, late=(1,))
    for number, sample in enumerate(samples):
        sample.rollout_log_probs = -torch.rand(sample.action_mask.shape) * sample.action_mask
        sample.truncated = torch.tensor([number % 3 == 0])
        sample.info["reward"] = sample.rewards.clone()
    samples[2].scores = samples[2].info["score"] = torch.tensor([torch.nan])
    samples[5].action_mask = torch.zeros_like(samples[5].action_mask)
    samples[7].rewards = samples[7].info["reward"] = torch.tensor([torch.nan])
    samples[8].action_mask[0, 3] = 0  # a token from the environment
    return samples


def computed(module, tokenizer, samples, *words):
    one = maker(module, *words)
    one.tokenizer = tokenizer
    one.keep_credit = True
    for number, sample in enumerate(samples):
        sample.index = [number]
        sample.kl = sample.action_log_probs = torch.zeros(sample.action_mask.shape)
        sample.info |= {"kl": torch.zeros(1), "logprobs_diff": torch.zeros(1)}
    return one.compute_advantages_and_returns(batched(samples, 4)), one


@pytest.fixture
def record(module, tokenizer, tmp_path):
    """Record a run with two steps of three groups; keep the experiences it trained on."""
    run, trained = tmp_path / "recorded", []
    for step in range(1, STEPS + 1):
        samples = sampled(step)
        before = [(one.sequences[0].clone(), one.action_mask[0].clone(), one.rollout_log_probs[0]) for one in samples]
        experiences, one = computed(module, tokenizer, samples)
        about = {"ktae": asdict(one.args.algo.ktae.config), "ktae_enabled": True}
        RolloutRecorder(run, 1, 10, 0, about).write(step, one.credit, tokenizer)
        trained.append((before, by_rollout(experiences), [one.truncated for one in experiences]))
    return SimpleNamespace(run=run, trained=trained)


def replaying(run, *words):
    return parse_command_line([*BASE, "--train.replay", str(run), *words])


def batches(args, host):
    """Return the replaying generator, with the host's own loader, and the number of updates."""
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedLoader
    from openrlhf_ktae.trainer.ppo_utils.replay import ReplayGenerator, recorded_data

    strategy = SimpleNamespace(args=args)
    strategy.setup_dataloader = DeepspeedStrategy.setup_dataloader.__get__(strategy)
    with pytest.MonkeyPatch.context() as patch:  # unlike this process, the trainer's has no process group
        patch.setattr(torch.distributed, "is_initialized", lambda: False)
        loader, held_out, updates = recorded_data(strategy, None)
    assert held_out is None
    generator = ReplayGenerator(strategy, loader, None, None, None)
    generator.prompts_dataloader = PositionedLoader(loader, generator)
    return generator, updates


def all_of(generator):
    exhausted = False
    while not exhausted:
        samples, _, _, exhausted = generator.generate_samples()
        if samples:
            yield samples


SETTINGS = "--rollout_batch_size 3 --train_batch_size 12 --rollout.micro_batch_size 12".split()


def test_k_and_advantages_equal_the_recorded_runs(record, module, tokenizer, host):
    generator, updates = batches(replaying(record.run, *SETTINGS), host)
    assert updates == STEPS
    seen = list(all_of(generator))
    assert len(seen) == STEPS
    for samples, (before, advantages, truncated) in zip(seen, record.trained, strict=True):
        for one, (sequence, mask, log_probs) in zip(samples, before, strict=True):
            end = len(one.sequences[0])  # environment tokens after the last action are not recorded
            assert torch.equal(one.sequences[0], sequence[:end])
            assert torch.equal(one.action_mask[0], mask[: end - 1].long())
            assert torch.equal(one.rollout_log_probs[0] * one.action_mask[0], (log_probs * mask)[: end - 1])
        assert torch.equal(torch.cat([one.truncated for one in samples]), torch.cat(truncated))
        experiences, again = computed(module, tokenizer, samples)
        found = by_rollout(experiences)
        assert found.keys() == advantages.keys()
        assert all(torch.equal(found[index], advantages[index]) for index in found)
        assert any(values.unique().numel() > 1 for values in found.values()), "advantages must contain K"
        assert again.metrics["ktae/mean_abs_k"] > 0


def test_another_estimator_sees_the_same_rollouts(record, module, tokenizer, host):
    for samples, (_, advantages, _) in zip(
        all_of(batches(replaying(record.run, *SETTINGS), host)[0]), record.trained, strict=True
    ):
        found = by_rollout(computed(module, tokenizer, samples, "--algo.ktae.weight", "0")[0])
        assert all(values.unique().numel() <= 2 for values in found.values()), "one value, or 0 without action"
        assert any(not torch.equal(found[index], advantages[index]) for index in found)


def test_a_replay_resumes_at_its_checkpoint(record, host):
    """Batches of two groups straddle files of three; the position travels in the host's loader state."""
    args = replaying(record.run, "--rollout_batch_size", "2", "--train_batch_size", "8")
    generator, _ = batches(args, host)
    straight = [([one.prompts[0] for one in samples], generator.prompts_dataloader.state_dict()) for samples in
                all_of(generator)]  # fmt: skip
    assert [len(prompts) for prompts, _ in straight] == [2 * N] * 3
    again, _ = batches(args, host)
    again.prompts_dataloader.load_state_dict(straight[0][1])
    assert [[one.prompts[0] for one in samples] for samples in all_of(again)] == [p for p, _ in straight[1:]]


def problems(args):
    from openrlhf_ktae.checks.replay import replay_problems

    return "\n".join(replay_problems(args))


def test_a_valid_record_is_accepted(record, model):
    assert not problems(replaying(record.run, *SETTINGS, "--pretrain", str(model)))


def without_log_probs(path):
    parquet.write_table(parquet.read_table(path).drop_columns(["rollout_log_probs", "truncated"]), path)


def of_another_tokenizer(path):
    table = parquet.read_table(path)
    about = json.loads(table.schema.metadata[METADATA_KEY]) | {"tokenizer": "another"}
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()}), path)


def less_a_rollout(path):
    parquet.write_table(parquet.read_table(path).slice(1), path)


def nothing(path):
    path.unlink()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "words", "says"),
    [
        (nothing, "", "has no recorded rollouts; train with --ktae.record_rollouts N"),
        (cut_off, "", "not a complete parquet file"),
        (of_another_tokenizer, "", "was recorded with a different tokenizer from that of --actor.model_name_or_path"),
        (less_a_rollout, "", "group 0 of step 1 has 3 rollouts; give --rollout.n_samples_per_prompt 3 instead of 4"),
        (None, "--n_samples_per_prompt 2", "has 4 rollouts; give --rollout.n_samples_per_prompt 4 instead of 2"),
        (None, "--train_batch_size 64", "has 6 groups and the smallest step takes 16; lower --train.batch_size"),
        (
            without_log_probs,
            "--algo.advantage.is_correction_level token",
            "step 1 was recorded without the sampler's log-probabilities",
        ),
        (None, "--run.dir {run}", "is this run's own directory, whose earlier record is set aside"),
    ],
)
def test_unusable_records_are_refused(record, model, damage, words, says):
    if damage:
        for path in sorted((record.run / "rollouts").glob("*.parquet")):
            damage(path)
    text = f"--rollout_batch_size 16 --train_batch_size 8 --pretrain {model} {words.format(run=record.run)}"
    assert says in problems(replaying(record.run, *text.split()))


def test_an_older_record_can_be_replayed_without_corrections(record, model, host):
    for path in (record.run / "rollouts").glob("*.parquet"):
        without_log_probs(path)
    args = replaying(record.run, *SETTINGS, "--pretrain", str(model))
    assert not problems(args)
    (first, *_), *_ = all_of(batches(args, host)[0])
    assert first.rollout_log_probs is None
    assert not first.truncated


@pytest.mark.parametrize(
    "words",
    [
        "--train.async_enable true",
        "--dynamic_filtering true",
        "--eval_dataset held.jsonl",
        "--data.max_images_per_prompt 1",
        "--reward.model_name_or_path judge",
    ],
)
def test_options_that_need_an_engine_are_refused(words, tmp_path):
    with pytest.raises(BadOption, match=r"with --train\.replay nothing is sampled or judged, and no engine starts"):
        replaying(tmp_path, *words.split())


def test_no_engine_is_started_in_a_replay(tmp_path):
    args = replaying(tmp_path, "--reward.remote_url", "http://127.0.0.1:1", "--vllm_num_engines", "4")
    assert args.vllm.num_engines == 0
    assert args.verifier.enable, "no model judges, and the reward server is not used"


def test_columns_of_the_wrong_type_are_refused(record):
    path = next((record.run / "rollouts").glob("*.parquet"))
    table = parquet.read_table(path)
    wrong = pa.array(["often"] * len(table))
    place = table.column_names.index("truncated")
    parquet.write_table(table.set_column(place, "truncated", wrong), path)
    with pytest.raises(ValueError, match="a column has the wrong type"):
        list(read_groups([path]))
    shutil.rmtree(record.run)
