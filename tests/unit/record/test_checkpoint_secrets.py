"""A run's checkpoints and W&B data contain no keys."""

from __future__ import annotations

import sys

KEY = "0123456789abcdef" * 2


def test_checkpoints_contain_no_key_of_the_command_line(tmp_path, monkeypatch, root):
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.launch.resuming import choose_checkpoint

    model = str(root / "examples/quickstart/model")
    words = f"--pretrain {model} --prompt_data x.jsonl --label_key l --vllm_num_engines 1 --run.dir {tmp_path}/run"
    words += f" --actor.num_gpus_per_node 1 --init_kl_coef 0 --logger.wandb.key {KEY}"
    monkeypatch.setattr(sys, "argv", ["train", *words.split()])
    args = parse_command_line(words.split())
    choose_checkpoint(args, "cpu")
    assert args.logger.wandb.key == KEY
    assert "command" in args.run.about["versions"]
    assert KEY not in repr(args)
    assert KEY not in str(args.run.about)
