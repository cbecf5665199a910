"""The age of rollouts in an asynchronous run: the host's two loops in threads, with an engine that knows its step."""

from __future__ import annotations

import itertools
import threading
import time
from queue import Queue
from types import SimpleNamespace

import pytest
from marks import SLOW

from openrlhf_ktae.base.batches import steps_in_buffer
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.trainer.staleness import ages

pytestmark = SLOW

N, BATCH, PROMPTS = 2, 4, 72
WORDS = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    f"--advantage_estimator ktae --n_samples_per_prompt {N} --rollout_batch_size {BATCH} --train_batch_size 8 "
    "--init_kl_coef 0 --max_len 32"
)
ASYNC = "--train.async_enable true"
SLOW_STEP = 0.15  # seconds; on a busy machine too, engines are faster


class Engine:
    """Marks answers with the last step whose weights it received, as a run's engine does."""

    def __init__(self, ray, equal=()):
        self.step = 0

        def answer(prompt, label, num_samples, **_):
            scores = [1.0] * N if int(prompt[1:]) in equal else [1.0, 0.0]
            return ray.put([response(prompt, label, score, self.step) for score in scores])

        self.generate_responses = SimpleNamespace(remote=answer)
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))


def response(prompt, label, score, step):
    return {
        "prompt": prompt,
        "label": label,
        "observation_tokens": [5, 6, 7, 1],
        "action_ranges": [(2, 4)],
        "reward": score,
        "scores": score,
        "rollout_log_probs": None,
        "weights_step": step,
    }


def trained_ages(ray, words, equal=(), slow=0.04):
    """Run the host's loops to the end of the data; return each step's (mean, maximum) age, and the batches."""
    from openrlhf.trainer import ppo_trainer_async as host
    from torch.utils.data import DataLoader

    from openrlhf_ktae.base.host import undecorated
    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator
    from openrlhf_ktae.trainer.staleness import slots

    args = parse_command_line([*WORDS.split(), *words.split()])
    rows = [("default", f"p{i}", "label", None) for i in range(PROMPTS)]
    loader = DataLoader(rows, batch_size=1, collate_fn=lambda batch: tuple(map(list, zip(*batch, strict=True))))
    loader.state_dict = dict
    engine = Engine(ray, equal)
    lock = threading.Lock()
    shared = {
        "args": args,
        "vllm_lock": SimpleNamespace(
            acquire=SimpleNamespace(remote=lambda: ray.put(lock.acquire())),
            release=SimpleNamespace(remote=lambda: ray.put(lock.release())),
        ),
        "_partial_rollout": False,
        "rollout_queue": Queue(slots(args)),
        "rollout_slots": Queue(slots(args)),
    }
    for _ in range(slots(args)):
        shared["rollout_slots"].put(0)
    seen, batches = [], []

    class Trainer(undecorated(host.TrainingActor)):
        wandb_logger = tensorboard_logger = None

        def __init__(self):
            vars(self).update(shared)

        def train_step(self, rollouts, step):
            batches.append(rollouts)
            seen.append(tuple(ages(rollouts, step).values()))
            time.sleep(slow)
            with lock:
                engine.step = step + 1
            return {}, step + 1

        def save_logs_and_checkpoints(self, *_):
            pass

    class Generator(undecorated(host.GenerateSamplesActor)):
        eval_dataloader, _eval_just_done, generate_kwargs = None, False, {}

        def __init__(self):
            vars(self).update(shared, prompts_dataloader=loader)
            self.samples_generator = KTAESamplesGenerator(SimpleNamespace(args=args), loader, None, None, [engine])

    generating = threading.Thread(target=Generator().fit, args=(0, 0), daemon=True)
    generating.start()
    Trainer().fit()
    generating.join()
    return seen, batches


def test_without_a_limit_a_long_queue_makes_stale_rollouts(ray_here):
    seen, _ = trained_ages(ray_here, f"{ASYNC} --train.async_queue_size 4", slow=SLOW_STEP)
    assert len(seen) == PROMPTS // BATCH
    assert max(oldest for _, oldest in seen) > 2


@pytest.mark.parametrize(("limit", "more"), [(1, ""), (2, ""), (2, "--rollout.vllm_generate_batch_size 8")])
def test_no_rollout_is_older_than_the_limit(ray_here, limit, more):
    seen, _ = trained_ages(ray_here, f"{ASYNC} --train.async_queue_size 4 {more} --train.max_staleness {limit}")
    assert len(seen) == PROMPTS // BATCH, "no prompt may be skipped"
    assert 1 <= max(oldest for _, oldest in seen) <= limit
    assert all(mean <= oldest for mean, oldest in seen)


def test_surplus_groups_are_dropped_when_stale(ray_here):
    """A third of the groups is filtered at first, so later waves bring more than is missing."""
    equal, words = range(0, 24), f"{ASYNC} --dynamic_filtering --train.async_queue_size 2"
    free, free_batches = trained_ages(ray_here, words, equal, slow=SLOW_STEP)
    assert max(oldest for _, oldest in free) > 2
    seen, batches = trained_ages(ray_here, f"{words} --train.max_staleness 2", equal)
    assert 0 < max(oldest for _, oldest in seen) <= 2
    dropped = [batch.metrics["staleness/dropped_rollouts"] for batch in batches]
    assert sum(dropped) > 0
    assert not sum(dropped) % N, "only whole groups may be dropped"
    assert "staleness/dropped_rollouts" not in free_batches[0].metrics


@pytest.mark.parametrize(("batch", "generated"), itertools.product((1, 4, 6, 64), (64, 96, 100, 128, 130)))
def test_longest_wait_of_a_prompt_in_the_buffer(batch, generated):
    """Simulates the host's buffer, which is refilled whenever it holds less than a batch."""
    buffer, longest = [], 0
    for step in range(400):
        if len(buffer) < batch:
            buffer += [step] * generated
        longest = max(longest, *(step - one for one in buffer[:batch]))
        buffer = buffer[batch:]
    assert longest == steps_in_buffer(batch, generated, filtering=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--train.max_staleness 1", "--train.max_staleness 1: only with --train.async_enable true"),
        (f"{ASYNC} --train.max_staleness 0", "--train.max_staleness 0: give a number at least 1"),
        (
            f"{ASYNC} --train.max_staleness 1 --rollout.vllm_generate_batch_size 8",
            "a prompt waits up to 1 steps to be trained on, and one more while it is sampled; give at least 2",
        ),
    ],
)
def test_an_unattainable_limit_is_refused(words, says):
    with pytest.raises(BadOption) as refusal:
        parse_command_line([*WORDS.split(), *words.split()])
    assert says in str(refusal.value)
