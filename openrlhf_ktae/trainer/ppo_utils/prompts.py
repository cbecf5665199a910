"""Departures from the host: labels exactly as in the file, one rule for templates, and only prompts that fit."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.datasets import PromptDataset

from openrlhf_ktae.base.errors import TrainingStopped
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.data.prompt_files import TEXT_SUFFIXES, text_rows
from openrlhf_ktae.data.prompt_folders import data_files, of_split
from openrlhf_ktae.data.templates import chat_arguments, fill
from openrlhf_ktae.verifier.user_reward import LabelledRow

ROW = "openrlhf_ktae_row"  # the only column of a data set that is read here: the row as JSON
TOKENIZED_AT_ONCE = 1024  # prompts


def use_in_this_process() -> None:
    """Make the host build its data sets with the classes below: it looks up both names as globals."""
    from openrlhf.datasets import utils
    from openrlhf.trainer import ppo_trainer

    ppo_trainer.PromptDataset = KTAEPromptDataset
    if not isinstance(utils.load_dataset, partial):
        utils.load_dataset = partial(load_rows, utils.load_dataset)


def notes_of(training: Any, evaluation: Any) -> list[str]:
    """Return notes for the user on the prompts of the host's two data loaders; the second may be None."""
    held_out = evaluation.dataset.notes if evaluation is not None else []
    return [*training.dataset.notes, *(f"held out: {note}" for note in held_out)]


def load_rows(load_dataset: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
    """Load like `load_dataset` of the `datasets` library, without type inference for text files.

    `load_dataset` turns texts such as 2024-01-05 into timestamps, large integers into floats, and NA into null. Other
    formats define their types and are passed on to it.
    """
    if name in ("json", "csv") and "data_files" in options:
        return _data_set([Path(options["data_files"])])
    folder = Path(name, options.get("data_dir") or "")
    files = data_files(folder) if folder.is_dir() else []
    if files and files[0].suffix in TEXT_SUFFIXES:
        return _Splits(folder, files)
    return load_dataset(name, *args, **options)


class _Splits(dict[str, Any]):
    """Name of a split -> its rows, read on access."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        super().__init__()
        self._folder, self._files = folder, files

    def __contains__(self, split: object) -> bool:
        return True

    def __getitem__(self, split: str) -> Any:
        return _data_set(of_split(self._folder, self._files, split))


def _data_set(files: Iterable[Path]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({ROW: [json.dumps(row) for file in files for row in text_rows(file)]})


class KTAEPromptDataset(PromptDataset):
    """The host's prompts with these departures; `notes` tell the user which prompts were dropped or cut."""

    def __init__(self, dataset: Any, tokenizer: Any, strategy: Any, input_template: str | None = None) -> None:
        data = strategy.args.data
        chat = chat_arguments(data.chat_template_args)
        rows = (_prepared(row, data.input_key, data.label_key, input_template) for row in _whole(dataset))
        if strategy.args.verifier.config.reward_file:
            rows = (_with_columns(row, data.label_key) for row in rows)
        templated = SimpleNamespace(apply_chat_template=partial(tokenizer.apply_chat_template, **chat))
        super().__init__(rows, templated, strategy)
        self.tokenizer = tokenizer
        self.notes: list[str] = []
        self._fit(strategy.args)

    def _fit(self, args: SimpleNamespace) -> None:
        """Drop prompts that leave no space for a response, or cut their beginnings, as `--data.long_prompts` says.

        Raises TrainingStopped if none is left.
        """
        limit = args.data.max_len - (args.rollout.max_new_tokens or 1)
        long = {
            index: ids
            for index, ids in enumerate(_token_ids(self.tokenizer, self.prompts))
            if len(ids) > limit and not self.images[index]
        }
        if not long:
            return
        what = (
            f"{len(long)} of {len(self)} prompts have more than {limit} tokens (--data.max_len {args.data.max_len} "
            f"less --rollout.max_new_tokens {args.rollout.max_new_tokens})"
        )
        if args.data.long_prompts == "cut":
            for index, ids in long.items():
                self.prompts[index] = _end_of(self.tokenizer, ids, limit)
            self.notes.append(f"{what}; their beginnings are cut off (--data.long_prompts cut)")
            return
        if len(long) == len(self):
            raise TrainingStopped(f"{what}: none is left to train on; raise --data.max_len")
        for values in (self.prompts, self.labels, self.images, self.datasources):
            values[:] = [value for index, value in enumerate(values) if index not in long]
        self.notes.append(f"{what} and are left out; raise --data.max_len, or --data.long_prompts cut keeps their ends")


def _whole(dataset: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in dataset:
        text = row.get(ROW)
        yield parse_json(text, exact=True) if text else dict(row)


def _prepared(row: dict[str, Any], input_key: str, label_key: str | None, template: str | None) -> dict[str, Any]:
    """Return `row` with the template around its prompt, or around the last message of a conversation.

    Raises TrainingStopped if the label is a date or time, whose original text is lost.
    """
    label = row.get(label_key) if label_key else None
    if isinstance(label, (date, time, timedelta)):
        raise TrainingStopped(f"--data.label_key {label_key}: holds times such as {label}; write them as text")
    prompt = row[input_key]
    if not template or not prompt:
        return row
    if isinstance(prompt, str):
        return {**row, input_key: fill(template, prompt)}
    *before, last = prompt
    if not isinstance(last.get("content"), str):
        return row
    return {**row, input_key: [*before, {**last, "content": fill(template, last["content"])}]}


def _with_columns(row: dict[str, Any], label_key: str | None) -> dict[str, Any]:
    """Return `row` with all its columns attached to the label, for reward functions that need columns."""
    return {**row, label_key: LabelledRow(row[label_key], row)} if label_key else row


def _token_ids(tokenizer: Any, prompts: list[str]) -> Iterator[list[int]]:
    for start in range(0, len(prompts), TOKENIZED_AT_ONCE):
        yield from tokenizer(prompts[start : start + TOKENIZED_AT_ONCE], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]


def _end_of(tokenizer: Any, ids: list[int], limit: int) -> str:
    """Return the longest end of the text of `ids` that tokenizes to at most `limit` tokens."""
    for length in range(limit, 0, -1):
        text = tokenizer.decode(ids[-length:], skip_special_tokens=False)
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= limit:
            return text
    return ""
