"""The models of a run, and names defined by other libraries."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.checks.model_folder import model_problems

SCHEDULES = ("cosine_with_min_lr", "constant", "constant_with_warmup", "linear", "cosine")
SYNC_BACKENDS = ("nccl", "gloo")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def models_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the problems of the models that the run loads."""
    actor, critic, reward = (part.model_name_or_path for part in (args.actor, args.critic, args.reward))
    trusted = args.model.trust_remote_code
    if not actor:
        yield "--actor.model_name_or_path (--pretrain): give a model folder or a name on the Hugging Face Hub"
    else:
        yield from model_problems("--actor.model_name_or_path", actor, trusted, generates=True)
    if critic and critic != actor:
        yield from model_problems("--critic.model_name_or_path", critic, trusted, generates=False)
    if reward and reward != critic and not args.reward.remote_url:
        yield from model_problems("--reward.model_name_or_path", reward, trusted, generates=False)


def name_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield unknown names of schedules, attention and weight-sync backends, and a missing chat template."""
    schedule = args.actor.lr_scheduler
    if schedule not in SCHEDULES:
        from transformers import SchedulerType  # the import takes seconds; the usual names skip it

        if schedule not in list(SchedulerType):
            yield f"--actor.lr_scheduler {schedule}: give one of {', '.join(SCHEDULES)}"
    attention = args.ds.attn_implementation
    if attention not in ATTENTION and "/" not in attention:
        yield f"--ds.attn_implementation {attention}: give one of {', '.join(ATTENTION)}"
    if args.vllm.sync_backend not in SYNC_BACKENDS:  # the host accepts any other name as a backend that is not nccl
        yield f"--vllm.sync_backend {args.vllm.sync_backend}: give one of {', '.join(SYNC_BACKENDS)}"
    folder = Path(args.actor.model_name_or_path or "")
    if args.data.apply_chat_template and os.path.isdir(folder) and not _has_chat_template(folder):
        yield (
            f"--data.apply_chat_template true: the tokenizer in {folder} has no chat template; leave it out, or add "
            "chat_template.jinja to the model"
        )


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("chat_template*")) or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        return "chat_template" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
