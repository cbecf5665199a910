"""What a rank adds to its part of a checkpoint: shards of averaged weights, random states."""

from __future__ import annotations

import torch


def test_shares_are_the_local_zero_shards(host, tmp_path):
    from openrlhf_ktae.trainer.ray.checkpointing import load_shares, shares

    def model():
        torch.manual_seed(0)
        made = torch.nn.Linear(3, 2)
        made.weight.ds_tensor = torch.arange(3.0)  # under ZeRO-3 a rank holds a shard; the parameter is empty
        made.weight.data = torch.empty(0)
        return made

    before = model()
    before.weight.ds_tensor += 5
    torch.nn.init.constant_(before.bias, 7)
    torch.save(shares(before), tmp_path / "share.pt")
    after = model()
    load_shares(after, torch.load(tmp_path / "share.pt", weights_only=True))
    assert after.weight.ds_tensor.tolist() == [5, 6, 7]
    assert after.bias.tolist() == [7, 7]


def test_a_rank_resumes_with_its_random_state_and_averaged_weights(host, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from openrlhf_ktae.checkpoint.write import begin
    from openrlhf_ktae.trainer.ray.checkpointing import CheckpointedActor

    class HostActor:
        def __init__(self):
            ckpt = SimpleNamespace(path=str(tmp_path))
            options = SimpleNamespace(ckpt=ckpt, run=SimpleNamespace(resume_from=None))
            self.strategy = SimpleNamespace(args=options, time_steps={"ema": 0}, load_ckpt=None, save_model=None)
            self.ema_model, self._rank, self.paths = torch.nn.Linear(2, 1), 1, []

        def init_model_from_pretrained(self, strategy):
            self.paths.append(strategy.args.ckpt.path)
            torch.rand(7)  # creating a model draws random numbers

        def save_checkpoint(self, tag):
            self.paths.append(self.strategy.args.ckpt.path)

    class Actor(CheckpointedActor, HostActor):
        role = "actor"

    first = Actor()
    first.strategy.time_steps["ema"] = 5
    staged = begin(tmp_path, "global_step2")
    first.save_checkpoint("global_step2")
    assert first.paths == [str(staged)]
    monkeypatch.setattr("openrlhf_ktae.trainer.ray.checkpointing.node_name", lambda: "10.0.0.2 (two)")
    node, files = first.files_seen("global_step2")
    assert node == "10.0.0.2 (two)"
    assert files == {"random/actor_rank00001.pt": (staged / "random/actor_rank00001.pt").stat().st_size}
    expected = torch.rand(3)
    second = Actor()
    second.strategy.args.run.resume_from = str(staged)
    second.init_model_from_pretrained(second.strategy)
    assert second.paths == [str(staged)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(second.ema_model.weight, first.ema_model.weight)
    assert second.strategy.time_steps["ema"] == 5
