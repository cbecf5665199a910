"""A user's own estimator: bad ones are refused before anything loads, a valid one is used."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks.credit_file import credit_file_problems, credit_needs
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.credit import (
    Estimator,
    NoOptions,
    TokenCredit,
    chosen_estimator,
    estimators,
    options_from,
    sample_batch,
    wrong_with,
)
from openrlhf_ktae.ktae import KTAEConfig
from openrlhf_ktae.processes import forks

HEAD = "from openrlhf_ktae.credit import TokenCredit, register\nimport torch\n\n"
WORDS = (
    "--pretrain m --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 --n_samples_per_prompt 4 "
    "--init_kl_coef 0"
).split()


def probed(code, words, outputs):
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


@pytest.fixture(scope="module")
def server(nothing_kept):
    """Start a server whose forks have torch: a fresh process needs two seconds to import it."""
    forks.start(["openrlhf_ktae.credit"], {})
    yield
    forks.stop()


@pytest.fixture
def forked_probe(server, monkeypatch, tmp_path):
    """Try files in forks of the server."""

    def run(command, **_):
        _, _, code, *words = command
        outputs = tmp_path / "out", tmp_path / "err"
        process = forks.ForkedProcess(target=probed, args=(code, words, outputs))
        process.start()
        process.join(60)
        out, err = (output.read_bytes() for output in outputs)
        return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)

    monkeypatch.setattr(subprocess, "run", run)


def parsed(path, estimator="custom", words=()):
    return parse_command_line([*WORDS, "--advantage_estimator", estimator, "--algo.credit.file", str(path), *words])


def written(tmp_path, body, decorator='@register("mine")'):
    path = tmp_path / "mine.py"
    path.write_text(f"{HEAD}{decorator}\ndef mine(batch, options):\n    {body}\n")
    return path


@pytest.mark.usefixtures("forked_probe")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return TokenCredit(batch.token_ids_N / 0)", "NaN or an infinite number"),
        ("return batch.base_N", "ValueError: mine returns Tensor: return a TokenCredit"),
        ("import os, sys; print('hm', file=sys.stderr); os._exit(5)", "exit code 5"),
        ("return TokenCredit(batch.on_tokens(batch.base_N))\n\nregister('two')(mine)", "registers 2 estimators"),
        ("return TokenCredit(batch.on_tokens(batch.base_N))\n\nraise SystemExit(1)", "exit code 1"),
        ("return 1\n\nimport atexit\natexit.register(lambda: os.write(2, b'bye'))\nimport os", "returns int"),
        (
            "return TokenCredit(batch.on_tokens(batch.base_N).double())",
            "added_N is torch.float64 on cpu: return float32",
        ),
        ("batch.base_N.mul_(2)\n    return TokenCredit(batch.on_tokens(batch.base_N))", "it modifies base_N"),
        ("batch.scores_B.nan_to_num_()\n    return TokenCredit(batch.on_tokens(batch.base_N))", "it modifies scores_B"),
        ("return TokenCredit(batch.on_tokens(batch.entropies_N))", "it reads inputs that it does not declare"),
        ("return TokenCredit(0 * batch.base_N, {'f': batch.base_N / 0 * 0})", "its figure f is NaN"),
        (
            "sides = [batch.correct_B[batch.group_B == q].any() for q in range(3)]\n    assert all(sides), 'all wrong'",
            "AssertionError: all wrong",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(body, words, tmp_path):
    path = written(tmp_path, body)
    (problem,) = credit_file_problems(parsed(path))
    assert problem.startswith(f"--algo.credit.file {path}: "), problem
    assert words in problem
    assert "fix it" in problem


@pytest.mark.parametrize(
    ("decorator", "words"),
    [
        ("@register('mine', options=dict)", "options=<class 'dict'>: give a frozen dataclass"),
        ("@register('mine', needs=('values',))", "NaN or an infinite number"),  # most tokens have no value
    ],
)
def test_a_bad_registration_is_refused(decorator, words, tmp_path):
    body = "return TokenCredit(batch.on_tokens(batch.base_N if batch.values_N is None else batch.values_N))"
    (problem,) = credit_file_problems(parsed(written(tmp_path, body, decorator)))
    assert words in problem


def test_options_that_refuse_their_defaults_are_the_files_fault(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text((HEAD + OPTIONS).replace("0.5", "-0.5"))
    (problem,) = credit_file_problems(parsed(path))
    assert problem.startswith(f"--algo.credit.file {path}: its options refuse their defaults: alpha=-0.5 must be")


def test_a_file_may_print_anything_and_has_no_input(tmp_path):
    path = written(tmp_path, "print('in', end='')\n    return TokenCredit(batch.on_tokens(batch.base_N))")
    prints = "import atexit, sys\nsys.stdout.buffer.write(b'\\xff')\natexit.register(print, 'bye')\n"
    path.write_text(f"{prints}assert not sys.stdin.read()\n{path.read_text()}")
    assert list(credit_file_problems(parsed(path))) == []


@pytest.mark.parametrize(
    ("credit", "words"),
    [
        (lambda batch: TokenCredit(torch.ones(72)), "outside of mask_N"),
        (lambda batch: TokenCredit(batch.mask_N.float()), "whose score is NaN"),
        (lambda batch: TokenCredit(batch.on_tokens(batch.log_probs_N)), ""),
    ],
)
def test_problems_found_with_a_sample_batch(credit, words):
    found = wrong_with(Estimator("mine", lambda batch, options: credit(batch), NoOptions, ("log_probs",), False))
    assert words in found
    assert bool(found) == bool(words)


def test_credit_of_another_shape_is_refused():
    one = Estimator("mine", lambda batch, options: TokenCredit(torch.ones(3)), NoOptions, (), False)
    with pytest.raises(ValueError, match=r"added_N has shape \(3,\): return one for each token, \(72,\)"):
        one(sample_batch())


def test_a_good_file_is_accepted_with_its_needs(tmp_path):
    decorator = '@register("mine", needs=("entropies",))'
    path = written(tmp_path, "return TokenCredit(batch.on_tokens(batch.needed('entropies')))", decorator)
    args = parsed(path)
    assert list(credit_file_problems(args)) == []
    assert credit_needs(args) == ("entropies",)
    assert args.algo.advantage.estimator == "group_norm"
    one, batch = chosen_estimator(args.algo.credit.name, args.algo.credit.file), sample_batch()
    assert one.name == "mine"
    assert torch.equal(one(batch).added_N, batch.on_tokens(batch.entropies_N))
    assert "mine" not in estimators(), "must not join the built-in estimators"


OPTIONS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Options:
    alpha: float = 0.5

    def __post_init__(self):
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} must be at least 0")

@register("mine", options=Options)
def mine(batch, options):
    return TokenCredit(batch.on_tokens(options.alpha * batch.base_N))
"""


@pytest.mark.usefixtures("forked_probe")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", ""),
        ('{"alpha": 0.25}', ""),
        ('{"beta": 1}', "beta: mine has no such option; there are alpha; correct it"),
        ('{"alpha": -1}', "alpha=-1 must be at least 0"),
        ("0.25", "0.25 is not a JSON object"),
        ("alpha=1", "Expecting value"),
        ('{"alpha": "a"}', '--algo.credit.options {"alpha": "a"}: \'<\' not supported'),
    ],
)
def test_options_of_a_file_are_checked_with_it(options, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + OPTIONS)
    args = parsed(path, words=["--algo.credit.options", options])
    problems = "".join(credit_file_problems(args))
    assert bool(problems) == bool(said), problems
    assert said in problems
    if not said:
        one, batch = chosen_estimator("custom", str(path)), sample_batch()
        found = one(batch, options_from(one, args.algo.credit.options)).added_N
        assert torch.equal(found, batch.on_tokens((0.25 if options else 0.5) * batch.base_N))


def test_a_missing_file_is_named(tmp_path):
    (problem,) = credit_file_problems(parsed(tmp_path / "none.py"))
    assert "no such file" in problem


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--advantage_estimator", "custom"], "--advantage_estimator custom: takes the estimator of a file"),
        (["--advantage_estimator", "tempo", "--algo.credit.file", "a.py"], "needs --advantage_estimator custom"),
        (
            ["--advantage_estimator", "group_norm", "--algo.credit.file", "a.py"],
            "--algo.credit.file a.py: does nothing",
        ),
        (
            ["--advantage_estimator", "mc_value", "--algo.mc_value.every", "0"],
            "--algo.mc_value.every=0 leaves no places",
        ),
        (["--advantage_estimator", "tempo", "--algo.mc_value.samples", "2"], "--algo.mc_value.samples 2: does nothing"),
        (["--advantage_estimator", "gtpo", "--algo.credit.options", "{}"], "options of gtpo are --algo.gtpo.*"),
        (["--advantage_estimator", "tempo", "--algo.credit.weight", "-1"], "--algo.credit.weight -1: give"),
        (["--advantage_estimator", "tempo", "--algo.credit.shuffle_labels"], "tempo does not read labels"),
        (["--advantage_estimator", "tempo", "--algo.gtpo.alpha", "0.3"], "--algo.gtpo.alpha 0.3: does nothing without"),
        (["--advantage_estimator", "tempo", "--algo.ktae.h1", "2"], "--algo.ktae.h1 2.0: does nothing without"),
        (["--advantage_estimator", "ktae", "--algo.ktae_by_context.h1", "2"], "context.h1 2.0: does nothing without"),
        (["--advantage_estimator", "ktae_by_context", "--algo.ktae_by_context.b", "2"], "--algo.ktae_by_context.b=2"),
        (["--advantage_estimator", "gtpo", "--algo.gtpo.alpha", "3"], "--algo.gtpo.alpha=3.0 must be from 0 to 1"),
        (["--advantage_estimator", "tempo", "--n_samples_per_prompt", "1"], "tempo compares the rollouts"),
    ],
)
def test_contradictions_are_refused(words, said):
    with pytest.raises(BadOption) as refusal:
        parse_command_line([*WORDS, *words])
    assert said in str(refusal.value)


def test_each_estimator_and_its_options_arrive():
    for name, one in estimators().items():
        args = parse_command_line([*WORDS, "--advantage_estimator", name, "--algo.credit.base", "rloo"])
        assert (args.algo.credit.name, args.algo.advantage.estimator) == (name, "rloo")
        assert (args.algo.credit.needs, args.algo.credit.config) == (one.needs, one.options())
    args = parse_command_line([*WORDS, "--advantage_estimator", "gtpo", "--algo.gtpo.form", "paper"])
    assert args.algo.credit.config.form == "paper"
    for name, given in (("variant", "calibrated"), ("h2", 3.0), ("centre", True), ("excluded_ids", (5,))):
        words = ["--advantage_estimator", "ktae_by_context", f"--algo.ktae_by_context.{name}", str(given).strip("(),")]
        args = parse_command_line([*WORDS, *words])
        assert args.algo.credit.config == KTAEConfig(**{name: given})
