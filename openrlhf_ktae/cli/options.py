"""The options of `train_ppo_ray`: this package's own, and how they are translated before the host sees the arguments.

To the user, KTAE and the others in `credit/` are estimators: `--advantage_estimator ktae`. The host gets the
rollout-level estimator (`--algo.credit.base`, by default `group_norm`); ours is passed in `args.algo.credit`.
"""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
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
    TrainOptions,
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
from openrlhf_ktae.credit.mc_value import McValueOptions
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.trainer.ppo_utils.group_filter import DynamicFilteringConfig
from openrlhf_ktae.verifier.config import VerifierConfig

PLACES = ("path", "dir", "dataset", "url", "resume", "replay", "file")  # suffixes of options that may be paths
ALL_LINEAR = "all-linear"
PARAM_DTYPES = ("bf16", "fp16", "fp32")


def parse_command_line(argv: Sequence[str]) -> SimpleNamespace:
    """Return the host's validated, nested arguments, with ours in `algo.credit`, `verifier`, `run` and `backend`.

    `algo.credit.config` (of the estimator), `algo.ktae.config`, `algo.mc_value.config`, `faults.config`,
    `algo.dynamic_filtering_config` and `verifier.config` are frozen dataclasses. `algo.credit.name` is empty without
    token-level credit. `algo.credit.needs` has the estimator's `needs` (empty for `custom`, whose file is read later).
    Raises BadOption if this package or the host refuses an option.
    """
    files, words = split_config_option(translate_flat_names(argv))
    args = parse(build_parser(files), words)
    if args.train.replay:
        args.vllm.num_engines = 0  # the host's validation, which has passed, requires one
    args.algo.ktae.config = build(KTAEConfig, vars(args.algo.ktae), "algo.ktae")
    _configure_credit(args.algo)
    args.faults.config = build(FaultsConfig, vars(args.faults), "faults")
    args.algo.dynamic_filtering_config = build(DynamicFilteringConfig, vars(args.algo), "algo")
    args.verifier.correct_threshold = args.algo.ktae.config.correct_threshold
    args.verifier.config = build(VerifierConfig, vars(args.verifier), "verifier")
    hide(args)
    return args


def _configure_credit(algo: SimpleNamespace) -> None:
    """Set `needs` and `config` of the estimator, and the options of `mc_value`."""
    name = algo.credit.name
    algo.credit.needs = estimators()[name].needs if name in estimators() else ()
    algo.credit.config = None
    algo.mc_value.config = build(McValueOptions, vars(algo.mc_value), "algo.mc_value")
    if name == "ktae":
        algo.credit.config = algo.ktae.config
    elif name and name != CUSTOM:
        given = vars(getattr(algo, name, SimpleNamespace()))
        algo.credit.config = build(estimators()[name].options, given, f"algo.{name}")


def build_parser(files: Sequence[Path] = ()) -> Parser:
    """Return the parser with our options; the host adds its own when its main block runs.

    Options from `files` are parsed before the command line, so the command line wins.
    """
    return Parser(declare, amend, finish, partial(config_words, files), epilog=flat_names_help())


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare this package's options."""
    _declare_run(parser.add_argument_group("Run"))
    prompts = parser.add_argument_group("Prompts and responses, in addition to the host's options")
    add_dataclass_options(prompts, PromptOptions, "data", defaults=True)
    prompts.add_argument(
        "--rollout.stop", nargs="*", default=[], metavar="TEXT", help="stop strings; the response keeps them"
    )
    training = parser.add_argument_group("Training, in addition to the host's options")
    add_dataclass_options(training, TrainOptions, "train", defaults=True)
    credit = parser.add_argument_group("Token-level credit (with --algo.advantage.estimator ktae, tempo, ...)")
    add_dataclass_options(credit, CreditOptions, "algo.credit", defaults=True, old_names=OLD_CREDIT_NAMES)
    ktae = parser.add_argument_group("KTAE (with --algo.advantage.estimator ktae)")
    add_dataclass_options(ktae, KTAEConfig, "algo.ktae")
    others = parser.add_argument_group("Other estimators of token-level credit (docs/estimators.md)")
    for name, options in OWN_OPTIONS.items():
        skip, defaults = (("correct_threshold",), False) if options is KTAEConfig else ((), True)  # the run's is used
        add_dataclass_options(others, options, f"algo.{name}", skip, defaults)
    recorded = parser.add_argument_group("Record of rollouts (token ids, scores, advantages with and without K)")
    add_dataclass_options(recorded, RecordOptions, "ktae", defaults=True)
    dapo = parser.add_argument_group("DAPO and Dr. GRPO, in addition to the host's options")
    add_dataclass_options(dapo, DynamicFilteringConfig, "algo")
    add_dataclass_options(dapo, LossOptions, "actor", defaults=True)
    add_dataclass_options(parser.add_argument_group("Faults"), FaultsConfig, "faults")
    verifier = parser.add_argument_group("Verifier (the judge unless a reward model, URL or agent is given)")
    add_dataclass_options(verifier, VerifierConfig, "verifier", skip=("reward_file", "correct_threshold"))


def _declare_run(run: Any) -> None:
    run.add_argument("--config", metavar="FILE.yaml", help="options as nested YAML keys; the command line wins")
    run.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="auto uses cuda if there is a GPU (default: auto)"
    )
    run.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        help="auto resumes from the newest complete checkpoint in --ckpt.path, if any; PATH is a checkpoint or a run "
        "directory (default: never)",
    )
    run.add_argument(
        "--ckpt.on_failure",
        choices=("continue", "stop"),
        default="continue",
        help="what to do when a checkpoint cannot be written, for example on a full disk; the last complete one is "
        "kept (default: continue)",
    )
    run.add_argument(
        "--model.trust_remote_code",
        **switch(False),
        help="run Python code shipped with a model or tokenizer (default: false)",
    )
    add_dataclass_options(run, RunOptions, "run", defaults=True)


def amend(names: Sequence[str], settings: dict[str, Any]) -> None:
    """Change a host option as it is declared: our estimators, the fp32 dtype, switches that can be turned off."""
    if "--algo.advantage.estimator" in names:
        settings["choices"] = [*settings["choices"], *CREDIT_NAMES]
    if "--ds.param_dtype" in names:
        settings["choices"] = list(PARAM_DTYPES)
    if "--ds.attn_implementation" in names:
        settings["default"] = None
        settings["help"] = (
            f"{settings['help']} (default: flash_attention_2 if flash-attn is installed or samples are packed, "
            "else sdpa)"
        )
    if "--ckpt.load_enable" in names:
        settings["help"] = "the same as --resume auto"
    if "--ckpt.best_metric_key" in names:
        settings["default"] = MACRO_ACCURACY
        settings["help"] = (
            "evaluation metric that selects the best checkpoint: eval_macro_accuracy (mean over benchmarks), "
            "eval_NAME_accuracy, ...; none saves no best checkpoint"
        )
    if settings.get("action") == "store_true":
        del settings["action"]
        text = settings.get("help", "")
        settings.update(switch(settings.get("default", False)), help=text)


def finish(parsed: argparse.Namespace) -> None:
    """Refuse contradictory options, then translate the rest for the host's validation, which runs next."""
    options = vars(parsed)
    options.update({name: expand_home(value) for name, value in options.items() if name.endswith(PLACES)})
    _refuse(range_problems(options))
    _refuse(option_problems(options))
    if options["train.replay"]:  # scores come from the record; the host's validation requires an engine
        options["vllm.num_engines"] = 1
        options["reward.remote_url"] = options["train.agent_func_path"] = None
    if options["ds.attn_implementation"] is None:
        packed = ("ds.packing_samples", "train.dynamic_batch_enable")
        flash = flash_attn_stub.is_installed() or any(map(options.get, packed)) or options["ds.ring_attn_size"] > 1
        options["ds.attn_implementation"] = "flash_attention_2" if flash else "sdpa"
    if options["ds.lora.target_modules"] == [ALL_LINEAR]:  # a keyword of PEFT, not a module name
        options["ds.lora.target_modules"] = ALL_LINEAR
    name = options["algo.advantage.estimator"]
    options["algo.credit.name"] = name if name in CREDIT_NAMES else ""
    if options["algo.credit.name"]:
        options["algo.advantage.estimator"] = options["algo.credit.base"]
    # The host's switch means `--resume auto`; the checkpoint is chosen later.
    options["resume"] = options["resume"] or (AUTO if options["ckpt.load_enable"] else NEVER)
    options["run.resume_from"], options["run.resume_step"], options["run.about"] = None, 0, {}
    options["run.accepted_changes"] = []
    _place_run(options)
    _choose_judge(options)
    _refuse(host_problems(options))


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise BadOption("\nerror: ".join(found))


def expand_home(value: Any) -> Any:
    """Expand `~` in each part of a comma-separated text; shells do so for some arguments, YAML never."""
    home = os.path.expanduser("~")
    return re.sub(r"(^|,)~(?=/|,|$)", lambda found: found[1] + home, value) if isinstance(value, str) else value


def _place_run(options: dict[str, Any]) -> None:
    """Put the host's outputs into `--run.dir` unless the user gave other paths."""
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
    """Use the verifier unless something else judges; a user's reward file runs inside it."""
    url = options["reward.remote_url"]
    whole = bool(url) and url.endswith(".py") and os.path.isfile(url)  # its name may contain a comma
    reward_file = url if url and (whole or url.split(",")[0].endswith(".py")) else ""
    options["verifier.reward_file"] = reward_file
    other = options["train.agent_func_path"] or options["reward.model_name_or_path"] or (url and not reward_file)
    options["verifier.enable"] = not other
    if not other:
        from openrlhf_ktae import verifier

        options["train.agent_func_path"] = str(next(iter(verifier.__path__))) + "/agent.py"
