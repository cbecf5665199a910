"""Contradictory or unknown options, refused before the host validates its own.

The options are flat here (`algo.credit.base`), as given; they are not yet translated for the host.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from openrlhf_ktae.base.batches import steps_in_buffer
from openrlhf_ktae.base.options import OLD_CREDIT_NAMES, CreditOptions
from openrlhf_ktae.base.text import joined, nearest
from openrlhf_ktae.checkpoint.resume import AUTO, NEVER
from openrlhf_ktae.checks.replay import engine_only_options
from openrlhf_ktae.credit import CUSTOM, NoOptions, estimators
from openrlhf_ktae.data.templates import MARK, chat_arguments, has_one_place
from openrlhf_ktae.ktae.config import KTAEConfig

CREDIT_NAMES = (*estimators(), CUSTOM)
"""Values of --advantage_estimator that give credit to tokens."""
OWN_OPTIONS = {name: one.options for name, one in estimators().items() if name != "ktae" and one.options != NoOptions}
"""Options `--algo.NAME.*` of other estimators. KTAE's are separate: its threshold is the run's, some have old names."""
MACRO_ACCURACY = "eval_macro_accuracy"


def option_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each contradiction: option, value, way out."""
    yield from _templates(options)
    yield from _estimator(options)
    yield from _best(options)
    yield from _asynchronous(options)
    yield from engine_only_options(options)
    yield from _staleness(options)
    yield from _resume(options)


def _templates(options: Mapping[str, Any]) -> Iterator[str]:
    template, arguments = options["data.input_template"], options["data.chat_template_args"]
    if template and not has_one_place(template):
        yield (
            f"--data.input_template {template!r}: must contain {MARK} once, where the prompt goes (or {{}}, which is "
            "literal after a command: \\boxed{})"
        )
    try:
        chat_arguments(arguments)
    except ValueError as error:
        yield str(error)
    if arguments and not options["data.apply_chat_template"]:
        yield f"--data.chat_template_args {' '.join(arguments)}: only with --data.apply_chat_template"


def _estimator(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield options of an estimator that is not chosen, groups of one, and filtering options without filtering."""
    name, top = options["algo.advantage.estimator"], options["algo.credit.top_tokens"]
    if top < 0:
        yield f"--algo.ktae.top_tokens {top} (--algo.credit.top_tokens): give 0 (none), or a higher number"
    samples, skipped = options["rollout.n_samples_per_prompt"], options["algo.dynamic_filtering_skip_solved"]
    if name in CREDIT_NAMES and samples < 2:
        yield (
            f"--rollout.n_samples_per_prompt {samples}: {name.upper() if name == 'ktae' else name} compares the "
            "rollouts of one prompt; give at least 2 (KTAE's paper uses 16)"
        )
    for cls, prefix, wanted in (
        (CreditOptions, "algo.credit", CREDIT_NAMES),
        (KTAEConfig, "algo.ktae", ("ktae",)),
        *((cls, f"algo.{owner}", (owner,)) for owner, cls in OWN_OPTIONS.items() if owner != "mc_value"),
        (OWN_OPTIONS["mc_value"], "algo.mc_value", ("mc_value", CUSTOM)),  # a user's estimator may need values, too
    ):
        if name not in wanted:
            yield from _idle(options, cls, prefix, wanted[0])
    yield from _credit(options, name)
    if skipped and not options["algo.dynamic_filtering_enable"]:
        yield f"--algo.dynamic_filtering_skip_solved {skipped}: only with --algo.dynamic_filtering_enable"


def _idle(options: Mapping[str, Any], cls: type, prefix: str, estimator: str) -> Iterator[str]:
    """Yield the options of `cls` that differ from their defaults. Defaults pass, since a run's config.yaml has them."""
    for field in fields(cls):
        full = f"{prefix}.{field.name}"
        given = options.get(full)  # None for the threshold of `ktae_by_context`, which is the run's
        value = tuple(given) if isinstance(given, list) else given
        counts = full == "algo.ktae.correct_threshold" and options["algo.advantage.estimator"] in CREDIT_NAMES
        if value in (None, field.default) or counts:
            continue
        written = f"--{full} {joined(value)}"
        if prefix == "algo.credit" and field.name in OLD_CREDIT_NAMES:
            written = f"{written.replace(full, OLD_CREDIT_NAMES[field.name])} (--{full})"
        yield f"{written}: does nothing without --advantage_estimator {estimator}; give that, or leave it out"


def _credit(options: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield contradictions between an estimator of token credit and the options common to all estimators."""
    file, weight = options["algo.credit.file"], options["algo.credit.weight"]
    if not 0 <= weight < math.inf:
        yield f"--algo.credit.weight {weight:g}: give a number of at least 0"
    if name == CUSTOM and not file:
        yield f"--advantage_estimator {CUSTOM}: takes the estimator of a file; give --algo.credit.file FILE.py"
    if file and name != CUSTOM and name in CREDIT_NAMES:
        yield f"--algo.credit.file {file}: needs --advantage_estimator {CUSTOM}; give that, or leave the file out"
    if given := name in estimators() and options["algo.credit.options"]:
        yield f"--algo.credit.options {given}: only for --algo.credit.file; the options of {name} are --algo.{name}.*"
    one = estimators().get(name)
    if one is None:
        return
    if options["algo.credit.shuffle_labels"] and not one.by_verdict:
        by_verdict = ", ".join(name for name, one in estimators().items() if one.by_verdict)
        yield (
            f"--algo.credit.shuffle_labels true: {name} does not read labels, only advantages; leave it out, or give "
            f"an estimator that does ({by_verdict})"
        )


def _best(options: Mapping[str, Any]) -> Iterator[str]:
    best = options["ckpt.best_metric_key"]
    if best and best != "none" and not best.startswith("eval_"):
        yield (
            f"--ckpt.best_metric_key {best}: not an evaluation metric; give {MACRO_ACCURACY}, eval_accuracy or "
            "another that begins with eval_, or none"
        )


def _asynchronous(options: Mapping[str, Any]) -> Iterator[str]:
    if not options["train.async_enable"]:
        return
    for flag in ("vllm.enable_sleep", "ds.enable_sleep"):
        if options[flag]:
            yield (
                f"--{flag} true: contradicts --train.async_enable true, whose engines and trainer run at the same "
                f"time; give --{flag} false, or --train.async_enable false"
            )
    if options["train.full_determinism_enable"]:
        yield (
            "--train.full_determinism_enable true: with --train.async_enable the weights of a rollout depend on "
            "timing; give --train.async_enable false"
        )


def _resume(options: Mapping[str, Any]) -> Iterator[str]:
    if options["resume"] == NEVER and options["ckpt.load_enable"]:
        yield f"--ckpt.load_enable true: contradicts --resume {NEVER}; it means --resume {AUTO}"
    for name in options["run.accept_changes"]:
        if name.removeprefix("--") not in options:
            yield f"--run.accept_changes {name}: no such option{nearest(name, list(options))}"


def _staleness(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reason if the limit `--train.max_staleness` cannot be kept."""
    limit = options["train.max_staleness"]
    if limit is None:
        return
    if not options["train.async_enable"]:
        yield (
            f"--train.max_staleness {limit}: only with --train.async_enable true; without it every rollout is sampled "
            "with the current weights"
        )
        return
    batch, generated = options["rollout.batch_size"], options["rollout.vllm_generate_batch_size"]
    waits = steps_in_buffer(batch, generated, options["algo.dynamic_filtering_enable"])
    if limit <= waits:
        yield (
            f"--train.max_staleness {limit}: with --rollout.vllm_generate_batch_size {generated} and "
            f"--rollout.batch_size {batch} a prompt waits up to {waits} steps to be trained on, and one more while it "
            f"is sampled; give at least {waits + 1}, or leave --rollout.vllm_generate_batch_size out"
        )
