"""Run an evaluation, of stored responses or of a model, and write its result folder."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.checkpoint.files import digests
from openrlhf_ktae.data.templates import MARK, Template
from openrlhf_ktae.evaluation import stored
from openrlhf_ktae.evaluation.benchmarks import Problem, load
from openrlhf_ktae.evaluation.generation import Completion, Engines, Request, Sampling, generate, open_engine
from openrlhf_ktae.evaluation.grading import CHUNK, STREAM_CHUNK, Response, graded, grader
from openrlhf_ktae.evaluation.results import ResultFolder
from openrlhf_ktae.figures.summary import markdown, summarize
from openrlhf_ktae.verifier import Verifier, VerifierConfig
from openrlhf_ktae.verifier.formats import opening_of

Summary = dict[str, Any]
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHT_FILES = (".safetensors", ".bin", ".model")
DONE = {"drop": "left out (--long_prompts cut keeps their ends)", "cut": "cut: their beginnings are not seen"}


def grade_stored(
    path: Path, output: Path, config: VerifierConfig, tokenizer: Any = None, overwrite: bool = False
) -> Summary:
    """Grade the responses of a file; write the results to `output`. With a tokenizer, lengths are in tokens.

    Raises BadInput if the file or the folder is invalid.
    """
    rows, sha256 = stored.scan(path)
    about = {
        "responses": str(path),
        "rows": rows,
        "sha256": sha256,
        "tokenizer": getattr(tokenizer, "name_or_path", None),
        "verifier": asdict(config),
        "grader": grader(),
    }
    folder = ResultFolder(output, about, overwrite)
    done = sum(1 for _ in folder.rows())
    responses = islice(_stored_responses(path, tokenizer), done, None)
    return _grade(folder, responses, config, about, rows, done)


def _stored_responses(path: Path, tokenizer: Any) -> Iterator[Response]:
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(stored.read(path)):
        key = row["benchmark"], stored.problem_key(row, number)
        seen[key] = seen.get(key, -1) + 1
        yield Response(
            benchmark=key[0],
            id=key[1],
            sample=seen[key],
            gold=row["gold"],
            response=row["response"],
            problem=row.get("problem"),
            tokens=_tokens(row, tokenizer),
            truncated=row.get("truncated") if isinstance(row.get("truncated"), bool) else None,
        )


def _tokens(row: dict[str, Any], tokenizer: Any) -> int | None:
    if tokenizer is not None:
        return len(tokenizer.encode(row["response"], add_special_tokens=False, verbose=False))
    return row["tokens"] if type(row.get("tokens")) is int else None


def load_problems(names: Iterable[str], folder: Path | None, limit: int | None) -> list[Problem]:
    """Return the problems of all benchmarks, at most `limit` of each. Raises BadInput if two have the same name."""
    problems = [problem for name in names for problem in load(name, folder)[:limit]]
    keys = {problem.key for problem in problems}
    if len(keys) != len(problems):
        raise BadInput("--benchmarks: two of them have the same name; rename a file or leave one out")
    return problems


def evaluate_model(
    problems: list[Problem],
    about: Summary,
    output: Path,
    tokenizer: Any,
    template: Template,
    engines: Engines,
    sampling: Sampling,
    backend: Backend,
    config: VerifierConfig,
    say: Callable[[str], None],
    overwrite: bool = False,
    long_prompts: str = "drop",
) -> Summary:
    """Generate, grade and summarize; responses already in `output` are not generated again.

    Prompts that leave no room for a response are counted. With `long_prompts` "drop" they are left out, with "cut" they
    keep their ends. Raises BadInput if every prompt is too long, or `output` has results with other settings, or of a
    model, problems or a template whose content has changed.
    """
    encoded = {
        problem.key: tokenizer.encode(template.fill(problem.problem), add_special_tokens=False, verbose=False)
        for problem in problems
    }
    if long := _too_long(encoded, engines, sampling, long_prompts):
        about = {
            **about,
            "long_prompts": {"choice": long_prompts, "prompts": Counter(name for name, _ in sorted(long))},
        }
        say(f"{len(long)} of {len(problems)} prompts leave no room for a response and are {DONE[long_prompts]}")
        limit = (engines.max_model_len or 0) - sampling.max_new_tokens
        encoded |= {key: encoded[key][-limit:] for key in long}
        if long_prompts == "drop":
            problems = [problem for problem in problems if problem.key not in long]
    about = {
        **about,
        "dtype": engines.dtype if backend.name == "cpu" else None,
        "model_digest": model_digest(engines.model),
        "problems_digest": _digest([asdict(problem) for problem in problems]),
        "template_text": template.fill(MARK),
        "verifier": asdict(config),
        "grader": grader(),
    }
    folder = ResultFolder(output, about, overwrite)
    done = {(row["benchmark"], row["id"], row["sample"]) for row in folder.rows()}
    total = len(problems) * sampling.samples
    by_key = {problem.key: problem for problem in problems}

    def requests() -> Iterator[Request]:
        for problem in problems:
            wanted = [(*problem.key, sample) for sample in range(sampling.samples)]
            yield from (Request(key, encoded[problem.key]) for key in wanted if key not in done)

    def response(completion: Completion) -> Response:
        benchmark, identity, sample = completion.key
        problem = by_key[benchmark, identity]
        return Response(
            benchmark=benchmark,
            id=identity,
            sample=sample,
            gold=problem.gold,
            response=completion.text,
            problem=problem.problem,
            tokens=completion.tokens,
            truncated=completion.truncated,
            opening=opening_of(template.fill(problem.problem)),
        )

    if len(done) == total:
        return _grade(folder, iter(()), config, about, total, total)
    engine = open_engine(engines, sampling, backend, say)
    try:
        responses = (response(completion) for completion in generate(engine, requests()))
        return _grade(folder, responses, config, about, total, len(done), template.require_tags, STREAM_CHUNK)
    finally:
        engine.close()


def model_digest(name: str) -> str | None:
    """Return a digest of a model folder's configuration, tokenizer and weights; None for a Hub name."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    found = (path for path in folder.iterdir() if path.name in MODEL_FILES or path.suffix in WEIGHT_FILES)
    contents = digests(path for path in found if path.is_file())
    return _digest({path.name: content for path, content in contents.items()})


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _too_long(
    encoded: Mapping[tuple[str, str], list[int]], engines: Engines, sampling: Sampling, choice: str
) -> set[tuple[str, str]]:
    """Return the problems whose prompts leave no room for a response.

    Raises BadInput if nothing is left to generate.
    """
    if engines.max_model_len is None:
        return set()
    limit = engines.max_model_len - sampling.max_new_tokens
    long = {key for key, ids in encoded.items() if len(ids) > limit}
    shortest = min(map(len, encoded.values()))
    if shortest >= engines.max_model_len:
        raise BadInput(
            f"--max_model_len {engines.max_model_len}: the shortest prompt has {shortest} tokens; use a model with a "
            "longer context"
        )
    if limit < 1 or (choice == "drop" and len(long) == len(encoded)):
        raise BadInput(
            f"--max_new_tokens {sampling.max_new_tokens}: with the shortest prompt ({shortest} tokens) this exceeds "
            f"the model's {engines.max_model_len}; give at most {engines.max_model_len - shortest}"
        )
    return long


def _grade(
    folder: ResultFolder,
    responses: Iterator[Response],
    config: VerifierConfig,
    about: Summary,
    total: int,
    done: int,
    require_tags: tuple[str, ...] = (),
    chunk: int = CHUNK,
) -> Summary:
    """Grade and write `responses` with a progress bar; return the summary of all rows of the folder."""
    tags = config.require_tags or require_tags
    tokens = 0
    if done < total:
        bar = tqdm(total=total, initial=done, unit="response", desc="evaluation", file=sys.stderr)
        with Verifier(config) as verifier, bar:
            for row in folder.append(graded(responses, verifier, tags, chunk)):
                tokens += row["tokens"] or 0
                if tokens:
                    bar.set_postfix_str(f"{tokens / bar.format_dict['elapsed']:.0f} tokens/s", refresh=False)
                bar.update()
    summary = summarize(folder.rows(), about)
    folder.finish(summary, markdown(summary))
    return summary
