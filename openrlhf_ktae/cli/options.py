"""The options of `train_ppo_ray`: this package's own, and what becomes of them before the host sees the arguments.

User-facing, KTAE and the others of `credit/` are estimators: `--advantage_estimator ktae`. Inside, the host sees the
rollout-level baseline (`group_norm` unless `--algo.credit.base` says otherwise) and ours travels in `args.algo.credit`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import BACKENDS, flash_attn_stub
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.faults_config import FaultsConfig
from openrlhf_ktae.base.options import (
    OLD_CREDIT_NAMES,
    CreditOptions,
    LossOptions,
    PromptOptions,
    RecordOptions,
    RunOptions,
)
from openrlhf_ktae.base.secrets import hide
from openrlhf_ktae.checkpoint.resume import AUTO, NEVER
from openrlhf_ktae.checks.host_rules import host_problems
from openrlhf_ktae.checks.options import CREDIT_NAMES, MACRO_ACCURACY, OWN_OPTIONS, option_problems
from openrlhf_ktae.checks.ranges import range_problems
from openrlhf_ktae.cli.config_file import config_words, split_config_option
from openrlhf_ktae.cli.dataclass_options import add_dataclass_options, build, switch
from openrlhf_ktae.cli.flat_names import flat_names_help, translate_flat_names
from openrlhf_ktae.cli.host_parser import Parser, parse
from openrlhf_ktae.credit import CUSTOM, estimators
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.trainer.ppo_utils.group_filter import DynamicFilteringConfig
from openrlhf_ktae.verifier.config import VerifierConfig

PLACES = ("path", "dir", "dataset", "url", "resume", "file")  # ends of names of options that may be paths
VERIFIER_AGENT = "verifier"
ALL_LINEAR = "all-linear"
PARAM_DTYPES = ("bf16", "fp16", "fp32")


def parse_command_line(argv: Sequence[str]) -> SimpleNamespace:
    """Return the host's validated, nested arguments with ours in `algo.credit`, `verifier`, `run` and `backend`.

    `algo.credit.config` (of the estimator), `algo.ktae.config`, `algo.dynamic_filtering_config`, `faults.config` and
    `verifier.config` are frozen dataclasses. `algo.credit.name` is empty where there is no token-level credit;
    `algo.credit.needs` says what its estimator needs of the policy (for `custom`, whose file nobody has read yet, "").

    Raises:
        BadOption: anything that is refused, by us or by the host.
    """
    files, words = split_config_option(translate_flat_names(argv))
    args = parse(build_parser(files), words)
    args.algo.ktae.config = build(KTAEConfig, vars(args.algo.ktae), "algo.ktae")
    _configure_credit(args.algo)
    args.faults.config = build(FaultsConfig, vars(args.faults), "faults")
    args.algo.dynamic_filtering_config = build(DynamicFilteringConfig, vars(args.algo), "algo")
    args.verifier.correct_threshold = args.algo.ktae.config.correct_threshold
    args.verifier.config = build(VerifierConfig, vars(args.verifier), "verifier")
    hide(args)
    return args


def _configure_credit(algo: SimpleNamespace) -> None:
    """Build the options of the estimator."""
    name = algo.credit.name
    algo.credit.needs = estimators()[name].needs if name in estimators() else ()
    algo.credit.config = None
    if name == "ktae":
        algo.credit.config = algo.ktae.config
    elif name and name != CUSTOM:
        given = vars(getattr(algo, name, SimpleNamespace()))
        algo.credit.config = build(estimators()[name].options, given, f"algo.{name}")


def build_parser(files: Sequence[Path] = ()) -> Parser:
    """Return the parser with our options; the host adds its own when its main block runs.

    What `files` say comes before the command line, which therefore wins.
    """

    def from_files(actions: Mapping[str, argparse.Action]) -> list[str]:
        return config_words(files, actions)

    return Parser(declare, amend, finish, from_files, epilog=flat_names_help())


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare this package's options."""
    _declare_run(parser.add_argument_group("Run"))
    prompts = parser.add_argument_group("Prompts and responses, beside the host's options")
    add_dataclass_options(prompts, PromptOptions, "data", defaults=True)
    prompts.add_argument(
        "--rollout.stop", nargs="*", default=[], metavar="TEXT", help="texts that end a response; it keeps them"
    )
    credit = parser.add_argument_group("Token-level credit (with --algo.advantage.estimator ktae, tempo, ...)")
    add_dataclass_options(credit, CreditOptions, "algo.credit", defaults=True, old_names=OLD_CREDIT_NAMES)
    ktae = parser.add_argument_group("KTAE (with --algo.advantage.estimator ktae)")
    add_dataclass_options(ktae, KTAEConfig, "algo.ktae")
    others = parser.add_argument_group("Other estimators of token-level credit (docs/estimators.md)")
    for name, options in OWN_OPTIONS.items():
        add_dataclass_options(others, options, f"algo.{name}", defaults=True)
    recorded = parser.add_argument_group("Record of rollouts (token ids, scores, advantages with and without K)")
    add_dataclass_options(recorded, RecordOptions, "ktae", defaults=True)
    dapo = parser.add_argument_group("DAPO and Dr. GRPO, beside the host's options")
    add_dataclass_options(dapo, DynamicFilteringConfig, "algo")
    add_dataclass_options(dapo, LossOptions, "actor", defaults=True)
    add_dataclass_options(parser.add_argument_group("Faults"), FaultsConfig, "faults")
    verifier = parser.add_argument_group("Verifier (the judge unless a reward model, URL or agent is given)")
    add_dataclass_options(verifier, VerifierConfig, "verifier", skip=("reward_file", "correct_threshold"))


def _declare_run(run: Any) -> None:
    run.add_argument("--config", metavar="FILE.yaml", help="options as nested YAML keys; the command line wins")
    run.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="auto takes cuda where there is a GPU (default: auto)"
    )
    run.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        help="auto resumes from the newest whole checkpoint below --ckpt.path, if there is one; PATH is a checkpoint "
        "or a run (default: never)",
    )
    run.add_argument(
        "--ckpt.on_failure",
        choices=("continue", "stop"),
        default="continue",
        help="what to do when a checkpoint cannot be written, as on a full disk; the last whole one stays (default: "
        "continue)",
    )
    run.add_argument(
        "--model.trust_remote_code",
        **switch(False),
        help="run Python code that comes with a model or tokenizer (default: false)",
    )
    add_dataclass_options(run, RunOptions, "run", defaults=True)


def amend(names: Sequence[str], settings: dict[str, Any]) -> None:
    """Change a host option as it is declared: one more estimator, one more dtype, switches that can be turned off."""
    if "--algo.advantage.estimator" in names:
        settings["choices"] = [*settings["choices"], *CREDIT_NAMES]
    if "--ds.param_dtype" in names:
        settings["choices"] = list(PARAM_DTYPES)
    if "--ds.attn_implementation" in names:
        settings["default"] = None
        settings["help"] = (
            f"{settings['help']} (default: flash_attention_2 where flash-attn is installed, else sdpa unless "
            "samples are packed)"
        )
    if "--ckpt.load_enable" in names:
        settings["help"] = "the same as --resume auto"
    if "--ckpt.best_metric_key" in names:
        settings["default"] = MACRO_ACCURACY
        settings["help"] = (
            "figure of an evaluation that selects the best checkpoint: eval_macro_accuracy (mean over benchmarks), "
            "eval_NAME_accuracy, ...; none saves no best checkpoint"
        )
    if settings.get("action") == "store_true":
        del settings["action"]
        text = settings.get("help", "")
        settings.update(switch(settings.get("default", False)), help=text)


def finish(parsed: argparse.Namespace) -> None:
    """Refuse what contradicts itself, then translate for the host's own validation, which comes next."""
    options = vars(parsed)
    options.update({name: at_home(value) for name, value in options.items() if name.endswith(PLACES)})
    _refuse(range_problems(options))
    _refuse(option_problems(options))
    if options["ds.attn_implementation"] is None:
        packed = ("ds.packing_samples", "train.dynamic_batch_enable")
        flash = flash_attn_stub.is_installed() or any(map(options.get, packed)) or options["ds.ring_attn_size"] > 1
        options["ds.attn_implementation"] = "flash_attention_2" if flash else "sdpa"
    if options["ds.lora.target_modules"] == [ALL_LINEAR]:  # a word for PEFT, not the name of a module
        options["ds.lora.target_modules"] = ALL_LINEAR
    name = options["algo.advantage.estimator"]
    options["algo.credit.name"] = name if name in CREDIT_NAMES else ""
    if options["algo.credit.name"]:
        options["algo.advantage.estimator"] = options["algo.credit.base"]
    _choose_resume(options)
    _place_run(options)
    _choose_judge(options)
    _refuse(host_problems(options))


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise BadOption("\nerror: ".join(found))


def at_home(value: Any) -> Any:
    """Return a text with `~/` for a home folder written out, as a shell does only for some words and YAML never."""
    home = os.path.expanduser("~")
    return re.sub(r"(^|,)~(?=/|,|$)", lambda found: found[1] + home, value) if isinstance(value, str) else value


def _choose_resume(options: dict[str, Any]) -> None:
    """Take the host's switch for `--resume auto`; what is found there is decided later."""
    options["resume"] = options["resume"] or (AUTO if options["ckpt.load_enable"] else NEVER)
    options["run.resume_from"], options["run.resume_step"], options["run.about"] = None, 0, {}
    options["run.accepted_changes"] = []


def _place_run(options: dict[str, Any]) -> None:
    """Put the host's outputs below `--run.dir` where the user has not placed them."""
    directory = options["run.dir"]
    if directory is None:
        options["run.dir"] = options["ckpt.output_dir"]
        return
    host_defaults = {"ckpt.output_dir": "./ckpt", "ckpt.path": "./ckpt/checkpoints_ppo_ray"}
    for name, below in (("ckpt.output_dir", "model"), ("ckpt.path", "checkpoints")):
        if options[name] == host_defaults[name]:
            options[name] = f"{directory}/{below}"
    options["logger.tensorboard_dir"] = options["logger.tensorboard_dir"] or f"{directory}/tensorboard"


def _choose_judge(options: dict[str, Any]) -> None:
    """Take the verifier where nothing else judges; a user's reward file runs inside it."""
    url = options["reward.remote_url"]
    whole = bool(url) and url.endswith(".py") and os.path.isfile(url)  # its name may have a comma
    reward_file = url if url and (whole or url.split(",")[0].endswith(".py")) else ""
    options["verifier.reward_file"] = reward_file
    other = options["train.agent_func_path"] or options["reward.model_name_or_path"] or (url and not reward_file)
    options["verifier.enable"] = not other
    if not other:
        from openrlhf_ktae import verifier

        options["train.agent_func_path"] = str(next(iter(verifier.__path__))) + "/agent.py"
