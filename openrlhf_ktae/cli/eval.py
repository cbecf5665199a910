"""`python -m openrlhf_ktae.cli.eval`: evaluate a model or stored responses, or compare two results."""

import argparse
import json
import os
import sys
from collections.abc import Container, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_ktae.backend import BACKENDS, resolve
from openrlhf_ktae.base.cut_off import CutOff
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.exit_codes import EXIT_STOPPED
from openrlhf_ktae.base.text import joined, short
from openrlhf_ktae.cli.command import CommandParser, at_least_1, load_tokenizer, run_command
from openrlhf_ktae.cli.dataclass_options import add_dataclass_options, build
from openrlhf_ktae.evaluation.results import require_folder, write_both
from openrlhf_ktae.verifier.config import VerifierConfig

DEFAULT_OUTPUT = "results"
DEFAULT_TEMPLATE = "qwen-math"
RAW = "none"  # for --write_prompts, because training applies --data.input_template
NOT_HERE = tuple(
    "reward_file correct_threshold reward_timeout_s reward_log_keys correct_reward wrong_reward format_reward "
    "max_unknown_share unknown_window after_retry".split()
)
GRADING = ("output", "overwrite", "verifier")
READ_BY = {  # options that each mode reads; `verifier` means all of --verifier.*
    "write_prompts": ("model", "benchmarks", "benchmark_dir", "limit", "template", "output"),
    "responses": ("tokenizer", *GRADING),
    "compare": ("output",),
}
EXAMPLES = """
  --model Qwen/Qwen2.5-Math-7B --benchmarks aime24,amc,math500,minerva,olympiadbench --template qwen-math --output DIR
  --responses answers.jsonl.gz --output DIR
  --compare DIR_A DIR_B
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 2 for refused input, 3 if the engine cuts responses off, 130 after Ctrl-C."""
    try:
        return run_command(run, argv)
    except CutOff as error:
        print(
            f"stopped early: {error}; output files are complete; run the same command again to resume", file=sys.stderr
        )
        return EXIT_STOPPED


def run(argv: Sequence[str]) -> None:
    """Run the evaluation or comparison that `argv` asks for and print its table."""
    options = parse(argv)
    if options.compare:
        print(_compare(options.compare, options.output), end="")
        return
    prefix = "verifier."
    given = {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}
    config = build(VerifierConfig, given, "verifier")
    output = Path(options.output or DEFAULT_OUTPUT)
    if options.write_prompts:
        _write_prompts(options)
        return
    summary = _stored(options, output, config) if options.responses else _model(options, output, config)
    from openrlhf_ktae.figures.summary import markdown

    print(markdown(summary), end="")
    print(f"\nresults in {output}: responses.jsonl, summary.json, summary.md")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; raises `BadOption` for options that cannot be combined."""
    parser = CommandParser("eval", __doc__ or "", f"examples:{EXAMPLES}")
    what = parser.add_argument_group("mode (one of)")
    what.add_argument("--model", metavar="NAME", help="model folder or name on the Hub, with --benchmarks")
    what.add_argument("--responses", type=Path, metavar="FILE", help="grade the responses of a JSONL file (.gz too)")
    what.add_argument("--compare", nargs=2, type=Path, metavar="DIR", help="paired tests between two results")
    out = parser.add_argument_group("output")
    out.add_argument("--output", metavar="DIR", help=f"result folder (default: {DEFAULT_OUTPUT})")
    out.add_argument("--overwrite", action="store_true", help="start over if the folder already has results")
    where = parser.add_argument_group("benchmarks")
    where.add_argument("--benchmarks", metavar="A,B", help="names, or .jsonl files with a problem and an answer column")
    where.add_argument("--benchmark_dir", type=Path, metavar="DIR", help="read NAME.jsonl from here instead of the Hub")
    where.add_argument("--limit", type=at_least_1, metavar="N", help="only the first N problems of each")
    where.add_argument(
        "--template",
        help="qwen-math, r1, chat, none or a text file with {problem} in it (default: qwen-math; none with "
        "--write_prompts)",
    )
    where.add_argument(
        "--chat_template_args",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="with --template chat: arguments of the model's chat template, such as enable_thinking=false",
    )
    where.add_argument(
        "--write_prompts",
        type=Path,
        metavar="FILE",
        help="only write the problems, for --eval.dataset; training applies --data.input_template to them. If you "
        "give --template, it is applied here: train without --data.input_template",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=at_least_1, default=1, metavar="K", help="samples per problem (default: 1)")
    sampling.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    sampling.add_argument("--top_p", type=float, default=1.0, help="(default: 1)")
    sampling.add_argument("--max_new_tokens", type=at_least_1, default=3072, metavar="N", help="(default: 3072)")
    sampling.add_argument("--stop", nargs="*", default=[], metavar="TEXT", help="texts that end a response")
    sampling.add_argument("--seed", type=int, default=0, help="(default: 0)")
    engines = parser.add_argument_group("engines")
    engines.add_argument("--engines", type=at_least_1, default=1, metavar="N", help="more than 1 run through Ray")
    engines.add_argument("--tensor_parallel_size", type=at_least_1, default=1, metavar="N", help="devices per engine")
    engines.add_argument("--backend", choices=BACKENDS, default="auto", help="(default: auto)")
    engines.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="for CPU engines (default: bf16)")
    engines.add_argument(
        "--max_model_len", type=at_least_1, metavar="N", help="prompt plus response (default: model's)"
    )
    engines.add_argument(
        "--long_prompts",
        choices=("drop", "cut"),
        default="drop",
        help="prompts that leave no room for --max_new_tokens: drop leaves them out and counts them, cut keeps their "
        "ends (default: drop)",
    )
    engines.add_argument("--gpu_memory_utilization", type=float, default=0.9, help="(default: 0.9)")
    engines.add_argument("--tokenizer", metavar="NAME", help="with --responses: count lengths in its tokens")
    add_dataclass_options(parser.add_argument_group("verifier"), VerifierConfig, "verifier", skip=NOT_HERE)
    options = parser.parse_args(argv)
    _refuse(options)
    _refuse_idle(options, {word.split("=")[0] for word in argv})
    return options


def _refuse(options: argparse.Namespace) -> None:
    chosen = [name for name in ("model", "responses", "compare") if getattr(options, name)]
    if options.write_prompts:
        _refuse_prompts(options, [name for name in chosen if name != "model"])
        return
    if len(chosen) != 1:
        raise BadOption(f"give one of --model, --responses and --compare (found {', '.join(chosen) or 'none'})")
    if options.model and not options.benchmarks:
        raise BadOption(f"--model {options.model}: give --benchmarks too, such as --benchmarks math500")
    if options.temperature < 0:
        raise BadOption(f"--temperature {options.temperature}: give 0 (greedy) or more")
    if options.samples > 1 and options.temperature == 0:
        raise BadOption(f"--samples {options.samples}: all would be equal at --temperature 0; give a temperature above")
    if not 0 < options.top_p <= 1:
        raise BadOption(f"--top_p {options.top_p}: give a number above 0 and at most 1")


def _refuse_idle(options: argparse.Namespace, words: Container[str]) -> None:
    """Refuse an option in `words` that the chosen mode does not read."""
    kind = next((name for name in READ_BY if getattr(options, name)), None)
    for name, value in vars(options).items():
        used = kind is None or name.split(".")[0] in (kind, *READ_BY[kind])
        if f"--{name}" in words and not used:
            raise BadOption(f"--{name} {joined(value)}: has no effect with --{kind}; leave it out")


def _refuse_prompts(options: argparse.Namespace, others: list[str]) -> None:
    if others:
        raise BadOption(f"--write_prompts {options.write_prompts}: leave out --{others[0]}; only prompts are written")
    if not options.benchmarks:
        raise BadOption(f"--write_prompts {options.write_prompts}: give --benchmarks too, such as --benchmarks math500")
    if options.template == "chat" and not options.model:
        raise BadOption("--template chat: give --model too, whose chat template is applied")


def _compare(folders: Sequence[Path], output: str | None) -> str:
    from openrlhf_ktae.evaluation.pairing import compare, markdown

    comparison = compare(folders[0], folders[1])
    table = markdown(comparison)
    if output:
        folder = Path(output)
        require_folder("--output", folder)
        write_both(folder / "comparison.json", comparison, table)
    return table


def _stored(options: argparse.Namespace, output: Path, config: VerifierConfig) -> dict[str, Any]:
    from openrlhf_ktae.evaluation.pipeline import grade_stored

    tokenizer = load_tokenizer(options.tokenizer, "--tokenizer") if options.tokenizer else None
    return grade_stored(options.responses, output, config, tokenizer, options.overwrite)


def _model(options: argparse.Namespace, output: Path, config: VerifierConfig) -> dict[str, Any]:
    from openrlhf_ktae.evaluation.benchmarks import source
    from openrlhf_ktae.evaluation.generation import Engines, Sampling
    from openrlhf_ktae.evaluation.pipeline import evaluate_model, load_problems

    name = options.template or DEFAULT_TEMPLATE
    names = options.benchmarks.split(",")
    problems = load_problems(names, options.benchmark_dir, options.limit)
    backend = resolve(options.backend)
    tokenizer = load_tokenizer(options.model, "--model")
    length = options.max_model_len or _model_length(options.model)
    given = {**vars(options), "stop": tuple(options.stop), "max_model_len": length}
    sampling, engines = build(Sampling, given, ""), build(Engines, given, "")
    about = {
        "model": options.model,
        "template": name,
        "sampling": asdict(sampling),
        "sources": {
            Path(name).stem if name.endswith(".jsonl") else name: source(name, options.benchmark_dir) for name in names
        },
        "limit": options.limit,
    }
    filled = _template(name, tokenizer, options)
    say = partial(print, file=sys.stderr)
    settings = (filled, engines, sampling, backend, config, say, options.overwrite, options.long_prompts)
    return evaluate_model(problems, about, output, tokenizer, *settings)


def _write_prompts(options: argparse.Namespace) -> None:
    from openrlhf_ktae.evaluation.pipeline import load_problems

    problems = load_problems(options.benchmarks.split(","), options.benchmark_dir, options.limit)
    tokenizer = load_tokenizer(options.model, "--model") if options.model else None
    filled = _template(options.template or RAW, tokenizer, options)
    require_folder("--write_prompts", options.write_prompts.parent)
    options.write_prompts.parent.mkdir(parents=True, exist_ok=True)
    with options.write_prompts.open("w", encoding="utf-8") as file:
        for problem in problems:
            row = {"input": filled.fill(problem.problem), "label": problem.gold, "datasource": problem.benchmark}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(problems)} prompts in {options.write_prompts}; columns input, label, datasource")


def _template(name: str, tokenizer: Any, options: argparse.Namespace) -> Any:
    from openrlhf_ktae.data.templates import chat_arguments, template

    return template(name, tokenizer, chat_arguments(options.chat_template_args, "--chat_template_args"))


def _model_length(name: str) -> int | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # each layer raises its own types; all mean that no engine could load the model
        raise BadOption(f"--model {name}: no model found there ({short(error)})") from None
    return getattr(config, "max_position_embeddings", None)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # engines are closed; a normal exit prints many leak warnings of Triton's bindings
