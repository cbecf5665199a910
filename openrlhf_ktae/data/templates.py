"""Prompt templates used by published results on mathematics."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import BadInput, BadOption
from openrlhf_ktae.base.plain_json import parse_json

MARK = "{problem}"
TEMPLATES = ("qwen-math", "r1", "chat", "none")
ASK = "Please reason step by step, and put your final answer within \\boxed{}."

# https://huggingface.co/Qwen/Qwen2.5-Math-7B-Instruct, section Quick Start: the system message of its examples.
QWEN_MATH = f"<|im_start|>system\n{ASK}<|im_end|>\n<|im_start|>user\n{MARK}<|im_end|>\n<|im_start|>assistant\n"
# DeepSeek-R1, https://arxiv.org/abs/2501.12948, table 1: reasoning and answer in separate tags.
R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    f"reasoning process here </think> <answer> answer here </answer>.\nUser: {MARK}\nAssistant: <think>"
)

PYTHONS = {"True": True, "False": False, "None": None}  # a template would treat any of them as true if it were a text
# A LaTeX command with an empty argument (`\boxed{}`) is text; `{{` and `}}` are escaped braces.
_PLACES = re.compile(r"\\[A-Za-z]+\{\}|\{\{|\}\}|\{\}")


def fill(text: str, problem: str) -> str:
    """Put `problem` into a template: at `{problem}` or, in a template without that mark, at `{}`."""
    if MARK in text:
        return text.replace(MARK, problem)
    values = {"{}": problem, "{{": "{", "}}": "}"}
    return _PLACES.sub(lambda place: values.get(place[0], place[0]), text)


def chat_arguments(words: Sequence[str], flag: str = "--data.chat_template_args") -> dict[str, Any]:
    """Parse chat template arguments such as `enable_thinking=false`; a value that is not JSON is text.

    Python's True, False and None have their usual values. Raises BadOption if a word is not NAME=VALUE; the message
    begins with the flag.
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise BadOption(f"{flag} {word}: give NAME=VALUE, such as enable_thinking=false")
        try:
            arguments[name] = PYTHONS[value] if value in PYTHONS else parse_json(value)
        except ValueError:
            arguments[name] = value
    return arguments


def has_one_place(text: str) -> bool:
    """Return whether a template has exactly one place for the problem."""
    return text.count(MARK) == 1 or (MARK not in text and _PLACES.findall(text).count("{}") == 1)


@dataclass(frozen=True)
class Template:
    """How to build a prompt from a problem, and the response format it asks for."""

    name: str
    fill: Callable[[str], str]
    require_tags: tuple[str, ...] = ()


def template(name: str, tokenizer: Any, chat_arguments: Mapping[str, Any] | None = None) -> Template:
    """Return the built-in template `name`, or read a text file `name` that contains `{problem}` (or `{}`).

    `chat_arguments` are passed to the tokenizer's chat template, for example `{"enable_thinking": False}`. Raises
    BadInput if there is no such template or file, a file does not have exactly one mark, or the tokenizer has no chat
    template.
    """
    if name == "qwen-math":
        return Template(name, lambda problem: QWEN_MATH.replace(MARK, problem))
    if name == "r1":
        return Template(name, lambda problem: R1.replace(MARK, problem), ("think", "answer"))
    if name == "none":
        return Template(name, lambda problem: problem)
    if name == "chat":
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput("--template chat: the model's tokenizer has no chat template; choose another template")

        def fill(problem: str) -> str:
            turns = [{"role": "user", "content": f"{problem}\n{ASK}"}]
            return tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **(chat_arguments or {})
            )

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
    if not has_one_place(text):
        raise BadInput(f"--template {name}: the file must contain {MARK} exactly once; write it where the problem goes")
    return Template(name, lambda problem: fill(text, problem))
