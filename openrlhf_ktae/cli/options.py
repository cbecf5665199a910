"""The options of `train_ppo_ray`: this package's own, and what becomes of them before the host sees the arguments.

User-facing, KTAE is an estimator: `--advantage_estimator ktae`. Inside, the host sees the rollout-level baseline
(`group_norm` unless `--algo.ktae.base` says otherwise) and the settings of KTAE travel in `args.algo.ktae`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.backend import BACKENDS, flash_attn_stub
from openrlhf_ktae.checkpoint.resume import AUTO, NEVER
from openrlhf_ktae.cli.config_file import config_words, split_config_option
from openrlhf_ktae.cli.dataclass_options import add_dataclass_options, build, switch
from openrlhf_ktae.cli.flat_names import flat_names_help, translate_flat_names
from openrlhf_ktae.cli.host_parser import BadOption, Parser, nearest, parse
from openrlhf_ktae.cli.host_rules import GROUPED, host_problems
from openrlhf_ktae.evaluation.templates import MARK, chat_arguments, has_one_place
from openrlhf_ktae.faults.config import FaultsConfig
from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.preflight.ranges import range_problems
from openrlhf_ktae.preflight.replay import engine_wanted
from openrlhf_ktae.safety.secrets import hide
from openrlhf_ktae.trainer.ppo_utils.group_filter import DynamicFilteringConfig
from openrlhf_ktae.trainer.staleness import staleness_problem
from openrlhf_ktae.verifier.config import VerifierConfig

KTAE = "ktae"
PLACES = ("path", "dir", "dataset", "url", "resume", "replay")  # ends of names of options that may be paths
VERIFIER_AGENT = "verifier"
MACRO_ACCURACY = "eval_macro_accuracy"
LOOPBACK = "127.0.0.1"
ALL_LINEAR = "all-linear"
PARAM_DTYPES = ("bf16", "fp16", "fp32")


def parse_command_line(argv: Sequence[str]) -> SimpleNamespace:
    """Return the host's validated, nested arguments with ours in `algo.ktae`, `verifier`, `run` and `backend`.

    `algo.ktae.config` and `verifier.config` are the values of validated dataclasses as plain dictionaries.

    Raises:
        BadOption: anything that is refused, by us or by the host.
    """
    files, words = split_config_option(translate_flat_names(argv))
    args = parse(build_parser(files), words)
    if args.train.replay:
        args.vllm.num_engines = 0  # the host's rules, which are behind us, want one
    args.algo.ktae.config = asdict(build(KTAEConfig, vars(args.algo.ktae), "algo.ktae"))
    args.faults.config = asdict(build(FaultsConfig, vars(args.faults), "faults"))
    args.algo.dynamic_filtering_config = asdict(build(DynamicFilteringConfig, vars(args.algo), "algo"))
    args.verifier.correct_threshold = args.algo.ktae.config["correct_threshold"]
    args.verifier.config = asdict(build(VerifierConfig, vars(args.verifier), "verifier"))
    hide(args)
    return args


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
    _declare_prompts(parser.add_argument_group("Prompts and responses, beside the host's options"))
    _declare_training(parser.add_argument_group("Training, beside the host's options"))
    _declare_ktae(parser.add_argument_group("KTAE (with --algo.advantage.estimator ktae)"))
    _declare_record(parser.add_argument_group("Record of rollouts (token ids, scores, advantages with and without K)"))
    _declare_dapo(parser.add_argument_group("DAPO and Dr. GRPO, beside the host's options"))
    add_dataclass_options(parser.add_argument_group("Faults"), FaultsConfig, "faults")
    verifier = parser.add_argument_group("Verifier (the judge unless a reward model, URL or agent is given)")
    add_dataclass_options(verifier, VerifierConfig, "verifier", skip=("reward_file", "correct_threshold"))


def _declare_run(run: Any) -> None:
    run.add_argument("--config", metavar="FILE.yaml", help="options as nested YAML keys; the command line wins")
    run.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="auto takes cuda where there is a GPU (default: auto)"
    )
    run.add_argument(
        "--run.dir",
        metavar="DIR",
        help="metrics.jsonl, config.yaml and versions.json go here; model, checkpoints and TensorBoard files too "
        "unless --ckpt.output_dir, --ckpt.path or --logger.tensorboard_dir say otherwise (default: the value of "
        "--ckpt.output_dir)",
    )
    run.add_argument(
        "--resume",
        metavar="auto|never|PATH",
        help="auto goes on from the newest whole checkpoint below --ckpt.path, if there is one; PATH is a checkpoint, "
        "or a run (default: never)",
    )
    run.add_argument(
        "--run.accept_changes",
        nargs="*",
        default=[],
        metavar="OPTION",
        help="options that may differ from the checkpoint's when a run goes on",
    )
    run.add_argument(
        "--ckpt.on_failure",
        choices=("continue", "stop"),
        default="continue",
        help="what to do when a checkpoint cannot be written, as on a full disk; the last whole one stays (default: "
        "continue)",
    )
    run.add_argument("--run.eval_edges", **switch(True), help="evaluate before the first and after the last step")
    run.add_argument("--run.plan", **switch(True), help="refuse what cannot fit, and write plan.txt (see cli.plan)")
    run.add_argument("--run.verbose", **switch(False), help="show what all processes print (default: false)")
    run.add_argument(
        "--run.grace_seconds",
        type=float,
        default=60,
        metavar="S",
        help="after SIGINT or SIGTERM, wait this long for the end of a step and its checkpoint (default: 60)",
    )
    run.add_argument(
        "--run.watchdog_minutes",
        type=float,
        default=0,
        metavar="MIN",
        help="stop, with the stacks of all processes, when no step or evaluation ends for so long; the start may "
        "take 30 minutes, or this where it is longer (default: 0, off)",
    )
    run.add_argument(
        "--run.restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again from the last checkpoint when a process of the run dies, at most N times (default: 0)",
    )
    run.add_argument(
        "--run.dashboard_host",
        default=LOOPBACK,
        metavar="HOST",
        help="where Ray's dashboard and job port listen if this command starts Ray: whoever reaches them can run code "
        "here (default: 127.0.0.1)",
    )
    run.add_argument(
        "--model.trust_remote_code",
        **switch(False),
        help="run Python code that comes with a model or tokenizer (default: false)",
    )


def _declare_prompts(prompts: Any) -> None:
    prompts.add_argument(
        "--data.long_prompts",
        choices=("drop", "cut"),
        default="drop",
        help="prompts that leave no room for a response (--data.max_len less --rollout.max_new_tokens): drop leaves "
        "them out and says how many, cut keeps their ends (default: drop)",
    )
    prompts.add_argument(
        "--data.chat_template_args",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the chat template, such as enable_thinking=false",
    )
    prompts.add_argument(
        "--rollout.stop", nargs="*", default=[], metavar="TEXT", help="texts that end a response; it keeps them"
    )


def _declare_training(training: Any) -> None:
    training.add_argument(
        "--train.max_staleness",
        type=int,
        metavar="N",
        help="with --train.async_enable: train on no rollout whose weights are more than N steps old (default: what "
        "--train.async_queue_size and dynamic sampling make of it)",
    )
    training.add_argument(
        "--train.replay",
        metavar="RUN",
        help="train on the rollouts that a run recorded (--ktae.record_rollouts), in that order, without an engine",
    )


def _declare_ktae(ktae: Any) -> None:
    ktae.add_argument(
        "--algo.ktae.base",
        choices=GROUPED,
        default=GROUPED[0],
        help="rollout-level baseline below K (default: group_norm)",
    )
    ktae.add_argument(
        "--algo.ktae.shadow", **switch(False), help="train with the base alone, log what KTAE would have given"
    )
    ktae.add_argument(
        "--algo.ktae.shuffle_labels", **switch(False), help="control: K from labels shuffled within each group"
    )
    ktae.add_argument("--algo.ktae.top_tokens", type=int, default=5, metavar="N", help="key tokens logged (default: 5)")
    add_dataclass_options(ktae, KTAEConfig, "algo.ktae")


def _declare_record(recorded: Any) -> None:
    recorded.add_argument(
        "--ktae.record_rollouts",
        type=int,
        default=0,
        metavar="N",
        help="every N steps, to rollouts/ of the run (0: off)",
    )
    recorded.add_argument(
        "--ktae.record_max_mb", type=int, default=512, metavar="MB", help="end of the record (default: 512)"
    )
    recorded.add_argument(
        "--ktae.record_groups", type=int, default=0, metavar="N", help="first N groups of a step (default: 0, all)"
    )


def _declare_dapo(dapo: Any) -> None:
    add_dataclass_options(dapo, DynamicFilteringConfig, "algo")
    dapo.add_argument(
        "--actor.mask_truncated",
        **switch(False),
        help="leave responses that were cut off out of the loss; their group's statistics keep them (default: false)",
    )
    dapo.add_argument(
        "--actor.dr_grpo_norm",
        **switch(False),
        help="divide the loss summed over tokens by --train.batch_size x --rollout.max_new_tokens instead of the "
        "number of tokens (Dr. GRPO, arXiv 2503.20783) (default: false)",
    )
    dapo.add_argument(
        "--actor.recompute_log_probs",
        **switch(False),
        help="compute old log-probabilities in a pass of their own even where a batch is one update and the update's "
        "serve (default: false)",
    )


def amend(names: Sequence[str], settings: dict[str, Any]) -> None:
    """Change a host option as it is declared: one more estimator, one more dtype, switches that can be turned off."""
    if "--algo.advantage.estimator" in names:
        settings["choices"] = [*settings["choices"], KTAE]
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
    """Translate `ktae` and the defaults of the run directory and the judge before the host validates."""
    options = vars(parsed)
    options.update({name: at_home(value) for name, value in options.items() if name.endswith(PLACES)})
    if problems := list(range_problems(options)):
        raise BadOption("\nerror: ".join(problems))
    _choose_replay(options)
    template = options["data.input_template"]
    if template and not has_one_place(template):
        raise BadOption(
            f"--data.input_template {template!r}: must hold {MARK} once, where the prompt goes (or {{}}, which is text "
            "after a command: \\boxed{})"
        )
    try:
        chat_arguments(options["data.chat_template_args"])
    except ValueError as error:
        raise BadOption(str(error)) from None
    if options["data.chat_template_args"] and not options["data.apply_chat_template"]:
        raise BadOption(
            f"--data.chat_template_args {' '.join(options['data.chat_template_args'])}: only with "
            "--data.apply_chat_template"
        )
    if options["ds.attn_implementation"] is None:
        packed = ("ds.packing_samples", "train.dynamic_batch_enable")
        flash = flash_attn_stub.is_installed() or any(map(options.get, packed)) or options["ds.ring_attn_size"] > 1
        options["ds.attn_implementation"] = "flash_attention_2" if flash else "sdpa"
    _choose_estimator(options)
    if options["algo.dynamic_filtering_skip_solved"] and not options["algo.dynamic_filtering_enable"]:
        raise BadOption(
            f"--algo.dynamic_filtering_skip_solved {options['algo.dynamic_filtering_skip_solved']}: only with "
            "--algo.dynamic_filtering_enable"
        )
    for name in ("record_rollouts", "record_max_mb", "record_groups"):
        if options[f"ktae.{name}"] < 0:
            raise BadOption(f"--ktae.{name} {options[f'ktae.{name}']}: give 0 or more")
    if options["train.async_enable"]:
        for flag in ("vllm.enable_sleep", "ds.enable_sleep"):
            if options[flag]:
                raise BadOption(
                    f"--{flag} true: contradicts --train.async_enable true, whose engines and trainer work at the same "
                    f"time; give --{flag} false, or --train.async_enable false"
                )
    if problem := staleness_problem(options):
        raise BadOption(problem)
    if options["train.full_determinism_enable"] and options["train.async_enable"]:
        raise BadOption(
            "--train.full_determinism_enable true: with --train.async_enable the weights of a rollout depend on who is "
            "faster; give --train.async_enable false"
        )
    best = options["ckpt.best_metric_key"]
    if best and best != "none" and not best.startswith("eval_"):
        raise BadOption(
            f"--ckpt.best_metric_key {best}: no figure of an evaluation; give {MACRO_ACCURACY}, eval_accuracy or "
            "another that begins with eval_, or none"
        )
    if options["ds.lora.target_modules"] == [ALL_LINEAR]:  # a word for PEFT, not the name of a module
        options["ds.lora.target_modules"] = ALL_LINEAR
    _choose_resume(options)
    _place_run(options)
    _choose_judge(options)
    if problems := list(host_problems(options)):
        raise BadOption("\nerror: ".join(problems))


def at_home(value: Any) -> Any:
    """Return a text with `~/` for a home folder written out, as a shell does only for some words and YAML never."""
    home = os.path.expanduser("~")
    return re.sub(r"(^|,)~(?=/|,|$)", lambda found: found[1] + home, value) if isinstance(value, str) else value


def _choose_estimator(options: dict[str, Any]) -> None:
    """Put the rollout-level baseline where the host looks; refuse options of KTAE that would do nothing."""
    enabled = options["algo.advantage.estimator"] == KTAE
    options["algo.ktae.enable"] = enabled
    if options["algo.ktae.top_tokens"] < 0:
        raise BadOption(f"--algo.ktae.top_tokens {options['algo.ktae.top_tokens']}: give 0 (none), or a higher number")
    if not enabled:
        for name, default in _ktae_defaults().items():
            value = tuple(options[name]) if isinstance(options[name], list) else options[name]
            if value not in (None, default):
                written = str(value).lower() if isinstance(value, bool) else value
                raise BadOption(
                    f"--{name} {written}: does nothing without --advantage_estimator ktae; give that, or leave it out"
                )
        return
    samples = options["rollout.n_samples_per_prompt"]
    if samples < 2:
        raise BadOption(
            f"--rollout.n_samples_per_prompt {samples}: KTAE compares the rollouts of one prompt; give at least 2 "
            "(the paper takes 16)"
        )
    options["algo.advantage.estimator"] = options["algo.ktae.base"]


def _choose_replay(options: dict[str, Any]) -> None:
    """Take scores from the record, and let the host's rules see the engine that they want."""
    if not options["train.replay"]:
        return
    if problems := list(engine_wanted(options)):
        raise BadOption("\nerror: ".join(problems))
    options["vllm.num_engines"] = 1
    options["reward.remote_url"] = options["train.agent_func_path"] = None


def _ktae_defaults() -> dict[str, Any]:
    """Return option of KTAE -> default. A run writes all down, and what it has written can be read again."""
    parser = argparse.ArgumentParser()
    _declare_ktae(parser)
    of_class = {f"algo.ktae.{field.name}": field.default for field in fields(KTAEConfig)}
    declared = {action.dest: action.default for action in parser._actions if action.dest.startswith("algo.ktae.")}
    return declared | of_class


def _choose_resume(options: dict[str, Any]) -> None:
    """Take the host's switch for `--resume auto`; what is found there is decided later."""
    if options["resume"] == NEVER and options["ckpt.load_enable"]:
        raise BadOption(f"--ckpt.load_enable true: contradicts --resume {NEVER}; it means --resume {AUTO}")
    for name in options["run.accept_changes"]:
        if name.removeprefix("--") not in options:
            raise BadOption(f"--run.accept_changes {name}: no such option{nearest(name, list(options))}")
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
