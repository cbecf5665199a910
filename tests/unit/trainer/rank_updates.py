"""One rank of a ZeRO run on gloo, in which rank 1 has a bad gradient in the first update; writes the result.

`python rank_updates.py STAGE DTYPE BAD FILE`, with MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.
"""

from __future__ import annotations

import os
import sys

from openrlhf_ktae.backend.cpu_patches import activate

activate()

import deepspeed  # noqa: E402
import torch  # noqa: E402

from openrlhf_ktae.trainer.nonfinite import skip_nonfinite_updates  # noqa: E402

STAGE, DTYPE, BAD, FILE = int(sys.argv[1]), getattr(torch, sys.argv[2]), float(sys.argv[3]), sys.argv[4]
RANK = int(os.environ["RANK"])


def weights(engine):
    parameters = list(engine.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([p.detach().float().flatten().clone() for p in parameters])


deepspeed.init_distributed("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
config = {
    "train_batch_size": 2,
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": STAGE},
    "bf16": {"enabled": sys.argv[2] == "bfloat16"},
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
}
engine, *_ = deepspeed.initialize(model=model, config=config, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1))
skip_nonfinite_updates(engine.optimizer)
seen = {"weights": [weights(engine)], "skipped": [engine.skipped_steps]}
for bad in (BAD if RANK == 1 else 1.0, 1.0):
    loss = engine(torch.full((1, 4), 1.0 + RANK, dtype=DTYPE)).sum() * bad
    engine.backward(loss)
    engine.step()
    seen["weights"].append(weights(engine))
    seen["skipped"].append(engine.skipped_steps)
torch.save(seen, FILE)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
