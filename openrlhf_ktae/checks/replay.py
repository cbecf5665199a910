"""Can the rollouts that an earlier run recorded be trained on with these options?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.base.batches import rollout_unit
from openrlhf_ktae.base.text import joined
from openrlhf_ktae.checks.round_trip import tokenizer_of

NEED_AN_ENGINE = (
    "train.async_enable train.partial_rollout_enable algo.dynamic_filtering_enable eval.dataset "
    "data.max_images_per_prompt reward.model_name_or_path"
).split()
"""Options that would have no effect in a replay, which samples, evaluates and judges nothing."""


def engine_only_options(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each option (flat names) of a replay that needs an engine or a judge."""
    for name in NEED_AN_ENGINE if options["train.replay"] else ():
        if value := options[name]:
            out = 'leave it out, or give ""' if isinstance(value, str) else "leave it out"
            given = f"--{name} {joined(value)}"
            yield f"{given}: with --train.replay nothing is sampled or judged, and no engine starts; {out}"


def replay_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the reasons if the record of `--train.replay` cannot be trained on; reads all of its groups."""
    from openrlhf_ktae.record.recorded import BadRecord, find, read_groups  # imports torch, which takes seconds
    from openrlhf_ktae.record.rollouts import tokenizer_hash

    flag, samples = f"--train.replay {args.train.replay}", args.rollout.n_samples_per_prompt
    own = Path(args.run.dir).resolve()
    if own in (Path(args.train.replay).resolve(), *Path(args.train.replay).resolve().parents):
        yield f"{flag}: is this run's own directory, whose earlier record is set aside; give another --run.dir"
        return
    count, tokenizers = 0, set()
    try:
        for group in read_groups(find([args.train.replay])):
            count += 1
            tokenizers.add(group.about.get("tokenizer"))
            if len(group.rows) != samples:
                yield (
                    f"{flag}: group {group.group} of step {group.step} has {len(group.rows)} rollouts; "
                    f"give --rollout.n_samples_per_prompt {len(group.rows)} instead of {samples}"
                )
                return
            corrected = args.algo.advantage.is_correction_level != "off"
            if corrected and any(row["rollout_log_probs"] is None for row in group.rows):
                yield (
                    f"{flag}: step {group.step} was recorded without the sampler's log-probabilities, which "
                    f"--algo.advantage.is_correction_level {args.algo.advantage.is_correction_level} needs; give off"
                )
                return
    except BadRecord as error:
        yield f"{flag}: {error}"
        return
    if count < (needed := rollout_unit(args) // samples):
        yield f"{flag}: has {count} groups and the smallest step takes {needed}; lower --train.batch_size"
    model = args.actor.model_name_or_path
    if Path(model or "").is_dir() and tokenizers != {tokenizer_hash(tokenizer_of(args, model))}:
        yield (
            f"{flag}: was recorded with a different tokenizer from that of --actor.model_name_or_path {model}, so its "
            "token ids mean something else here; give a model with the same vocabulary"
        )
