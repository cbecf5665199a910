"""Parts of an evaluation that its figures do not show: streaming, seeds, revisions, tags, the grader's hash."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.cli.eval import main
from openrlhf_ktae.evaluation import benchmarks, grading
from openrlhf_ktae.evaluation import pipeline as evaluate
from openrlhf_ktae.evaluation.generation import Completion, Sampling, parameters
from openrlhf_ktae.evaluation.grading import CHUNK, Response, graded
from openrlhf_ktae.verifier import Verifier, VerifierConfig


def test_rows_are_graded_as_responses_stream_in():
    read = []

    def responses():
        for number in range(5 * CHUNK):
            read.append(number)
            yield Response("a", str(number), 0, "4", "so \\boxed{4}")

    with Verifier(VerifierConfig(workers=1)) as verifier:
        stream = graded(responses(), verifier)
        assert next(stream)["verdict"] == "correct"
        assert len(read) == CHUNK
        assert sum(1 for _ in stream) == 5 * CHUNK - 1


def test_each_request_has_its_own_seed_independent_of_order():
    sampling = Sampling(samples=2, temperature=1.0, seed=3)
    keys = [("a", "1", 0), ("a", "1", 1), ("a", "2", 0), ("b", "1", 0)]
    seeds = [parameters(sampling, key).seed for key in keys]
    assert len(set(seeds)) == len(keys)
    assert None not in seeds
    assert [parameters(sampling, key).seed for key in reversed(keys)] == seeds[::-1]
    assert parameters(Sampling(temperature=1.0, seed=4), keys[0]).seed != seeds[0]
    assert parameters(Sampling(seed=3), keys[0]).seed is None, "greedy decoding needs no seed"


def test_a_hub_benchmark_is_loaded_at_its_pinned_revision(monkeypatch):
    asked = {}
    entry = benchmarks.registry()["aime24"]

    def load_dataset(name, **options):
        asked[name] = options
        return [{"problem": "1 + 1", "answer": "2", "question": "1 + 1"}] * entry["rows"]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(benchmarks.load("aime24")) == entry["rows"]
    assert asked == {entry["hub"]: {"revision": entry["revision"], "split": entry["split"]}}


def test_a_hub_benchmark_with_another_number_of_rows_is_refused(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [])
    with pytest.raises(BadInput, match="has 0 rows instead of"):
        benchmarks.load("aime24")


def test_the_r1_template_requires_its_tags(tmp_path, root, monkeypatch):
    """The prompt opens `<think>`; the second response never closes it, so it has no answer."""
    texts = ["so </think> <answer> 2 </answer>", "so <answer> 2 </answer>"]

    class Engine(SimpleNamespace):
        capacity = 4

        def submit(self, request):
            self.waiting.append(request.key)

        def finished(self):
            done, self.waiting = self.waiting, []
            return [Completion(key, texts[int(key[1])], 5, False) for key in done]

        def close(self):
            pass

    monkeypatch.setattr(evaluate, "open_engine", lambda *_: Engine(waiting=[]))
    (tmp_path / "two.jsonl").write_text(json.dumps({"problem": "1 + 1", "answer": "2"}) + "\n")
    (tmp_path / "two.jsonl").write_text((tmp_path / "two.jsonl").read_text() * 2)
    words = ["--model", str(root / "examples/quickstart/model"), "--benchmarks", str(tmp_path / "two.jsonl")]
    words += ["--template", "r1", "--backend", "cpu", "--max_new_tokens", "9", "--max_model_len", "9999"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    pooled = json.loads((tmp_path / "out" / "summary.json").read_text())["pooled"]
    assert (pooled["accuracy"], pooled["format_rate"]) == (0.5, 0.5)


@pytest.fixture
def asked(monkeypatch):
    """Record the requests of an evaluation; each is answered with 2."""
    seen = []

    class Engine(SimpleNamespace):
        capacity = 4

        def submit(self, request):
            seen.append(request)
            self.waiting.append(request.key)

        def finished(self):
            done, self.waiting = self.waiting, []
            return [Completion(key, "\\boxed{2}", 1, False) for key in done]

        def close(self):
            pass

    monkeypatch.setattr(evaluate, "open_engine", lambda *_: Engine(waiting=[]))
    return seen


@pytest.mark.parametrize("choice", ["drop", "cut"])
def test_prompts_without_room_for_a_response_are_left_out_or_cut_and_counted(choice, tmp_path, root, asked, capsys):
    """Prompts may have 8 tokens; the second of three has more."""
    texts = ["1 + 1", " ".join(["1 + 1 +"] * 8), "1 + 1"]
    rows = [json.dumps({"problem": text, "answer": "2"}) + "\n" for text in texts]
    (tmp_path / "three.jsonl").write_text("".join(rows))
    words = ["--model", str(root / "examples/quickstart/model"), "--benchmarks", str(tmp_path / "three.jsonl")]
    words += ["--template", "none", "--backend", "cpu", "--max_new_tokens", "12", "--max_model_len", "20"]
    words += ["--output", str(tmp_path / "out"), "--long_prompts", choice]
    assert main(words) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    kept = 2 if choice == "drop" else 3
    assert summary["long_prompts"] == {"choice": choice, "prompts": {"three": 1}}
    assert (len(asked), summary["pooled"]["problems"]) == (kept, kept)
    assert max(len(request.prompt_ids) for request in asked) == (8 if choice == "cut" else 3)
    said = capsys.readouterr()
    assert "1 of 3 prompts leave no room for a response" in said.err
    assert f"long_prompts: {{'choice': '{choice}'" in said.out
    assert main(words) == 0  # a second call requests nothing
    assert len(asked) == kept
    other = {"drop": "cut", "cut": "drop"}[choice]
    assert main([*words[:-1], other]) == 2
    assert f"'choice': '{choice}'" in capsys.readouterr().err


def test_the_graders_hash_covers_its_code_and_libraries(tmp_path, monkeypatch):
    def hash_now():
        grading.grader.cache_clear()
        return grading.grader()["hash"]

    (tmp_path / "judging").mkdir()
    (tmp_path / "judging" / "judge.py").write_text("a = 1\n")
    own = hash_now()
    with monkeypatch.context() as patch:
        patch.setattr(grading.verifier_package, "__path__", [str(tmp_path)])
        first = hash_now()
        (tmp_path / "judging" / "judge.py").write_text("a = 2\n")
        second = hash_now()
        patch.setattr(grading, "installed", lambda package: f"{package} 0")
        third = hash_now()
    assert len({own, first, second, third}) == 4
    assert hash_now() == own
