"""Problem -> prompt: the templates that published results on mathematics were made with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.evaluation.stored import BadInput

MARK = "{problem}"
TEMPLATES = ("qwen-math", "r1", "chat", "none")
ASK = "Please reason step by step, and put your final answer within \\boxed{}."

# https://huggingface.co/Qwen/Qwen2.5-Math-7B-Instruct, section Quick Start: the system message of its examples.
QWEN_MATH = f"<|im_start|>system\n{ASK}<|im_end|>\n<|im_start|>user\n{MARK}<|im_end|>\n<|im_start|>assistant\n"
# DeepSeek-R1, https://arxiv.org/abs/2501.12948, table 1: reasoning and answer in tags of their own.
R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    f"reasoning process here </think> <answer> answer here </answer>.\nUser: {MARK}\nAssistant: <think>"
)


@dataclass(frozen=True)
class Template:
    """How a prompt is made of a problem, and the format that it asks for."""

    name: str
    fill: Callable[[str], str]
    require_tags: tuple[str, ...] = ()
    opening: str = ""
    """End of the prompt that belongs to the response."""


def template(name: str, tokenizer: Any) -> Template:
    """Return the template called `name`, or made of the text file `name` with `{problem}` in it.

    Raises:
        BadInput: no such template or file, no mark in it, or a tokenizer without a chat template.
    """
    if name == "qwen-math":
        return Template(name, lambda problem: QWEN_MATH.replace(MARK, problem))
    if name == "r1":
        return Template(name, lambda problem: R1.replace(MARK, problem), ("think", "answer"), "<think>")
    if name == "none":
        return Template(name, lambda problem: problem)
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput("--template chat: the model's tokenizer has no chat template; choose another template")

        def fill(problem: str) -> str:
            turns = [{"role": "user", "content": f"{problem}\n{ASK}"}]
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

        return Template(name, fill)
    return _from_file(name)


def _from_file(name: str) -> Template:
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"--template {name}: choose one of {', '.join(TEMPLATES)}, or a text file with {MARK} in it")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--template {name}: cannot be read ({error}); give a text file with {MARK} in it") from None
    if MARK not in text:
        raise BadInput(f"--template {name}: the file has no {MARK}; write it where the problem goes")
    return Template(name, lambda problem: text.replace(MARK, problem))
