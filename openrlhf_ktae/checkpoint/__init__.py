"""Checkpoint folders: written atomically, verified, rotated, and selected when a run resumes.

This package handles only files: no trainer, no Ray, no model. The trainer decides what to save
(`trainer.checkpointing`), the command line what to resume from (`launch.resuming`). Below `--ckpt.path`:

global_step20/              one checkpoint; renamed to this name once it is complete
    manifest.json             size and digest of every file, step, options, data, versions
    trainer.pt                state of the trainer's process: buffered rollouts, ledger, random states
    random/                   random states of every rank
    _actor/, _critic/         the host's layout; plain OpenRLHF: --ckpt.path .../global_step20 --ckpt.load_enable
    global_step20_hf/         the model for transformers (--ckpt.save_hf)
best_global_step20/         the same, for the best evaluation
latest                      name of the newest checkpoint
anew                        sequence numbers superseded by a restart from scratch or a rollback
.lock                       locked by the run that writes here
.writing-global_step40/     a checkpoint being written, or left unfinished when the run died
"""
