"""Checkpoints as folders: written whole or not at all, verified, rotated, and chosen from when a run goes on.

A room of its own because it knows files alone: no trainer, no Ray, no model. The trainer says what goes in
(`trainer.checkpointing`), the command line what to go on from (`run.resuming`). Below `--ckpt.path`:

global_step20/              one checkpoint; renamed to this name when it is whole
    manifest.json             size and digest of every file, step, options, data, versions
    trainer.pt                what the trainer's process goes on from: buffered rollouts, ledger, random states
    random/                   random states of every rank
    _actor/, _critic/         the host's own layout: `--ckpt.path global_step20` resumes it in plain OpenRLHF
    global_step20_hf/         the model for transformers (--ckpt.save_hf)
best_global_step20/         the same, of the best evaluation
latest                      name of the checkpoint that was written last
anew                        numbers of checkpoints that a run left, beginning anew or going back
.lock                       held by the run that writes here
.writing-global_step40/     one that is being written, or was when the run died
"""
