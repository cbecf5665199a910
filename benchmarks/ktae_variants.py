"""The three variants of KTAE side by side: named tables, random labels, real rollouts.

    python benchmarks/ktae_variants.py [--rollouts FILE.jsonl.gz] [--tokenizer FOLDER] [--write docs/ktae.md]

Prints Markdown; `--write` puts it between the marks in a document. Rollouts are JSON lines with `benchmark`, `response`
and `published_reward`. Without a tokenizer folder, words, digits and signs count as tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zipf_batches import VOCABULARY, zipf_batch

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values, explain_group

VARIANTS: tuple[KTAEConfig, ...] = (
    KTAEConfig(variant="paper"),
    KTAEConfig(variant="reference"),
    KTAEConfig(variant="calibrated"),
)
TABLES = {
    "in 1 of 8 correct, 0 of 8 wrong (singleton)": (1, 0),
    "in 2 of 8 correct, 0 of 8 wrong": (2, 0),
    "in 8 of 8 correct, 2 of 8 wrong": (8, 2),
    "in 7 of 8 correct, 1 of 8 wrong": (7, 1),
    "in 8 of 8 correct, 0 of 8 wrong (perfect separator)": (8, 0),
}
SIDE, FILLER = 8, 700
SIZES = (4, 8, 16, 32, 64)
LABELLINGS = 300
LARGE = 0.5
"""Share of the range above which a value counts as large."""
REAL_GROUP = 16
WORDS = re.compile(r"[A-Za-z]+|\d|\s+|[^\sA-Za-z0-9]")
BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"

Group = tuple[NDArray[np.int64], NDArray[np.bool_]]


def main() -> None:
    """Print the tables, or put them into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollouts", type=Path, help="without it, tables of real rollouts are omitted")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--write", type=Path, help="document to update with the tables")
    options = parser.parse_args()
    parts = [named_tables(), noise_table("Zipf-distributed ids (V = 151,936), labels permuted", zipf_groups)]
    if options.rollouts:
        rollouts, tokens = read_rollouts(options.rollouts, options.tokenizer)
        texts = [ids for _, ids, _ in rollouts]
        title = f"Real rollouts ({len(texts)} responses, {tokens} as tokens), labels permuted"
        parts += [noise_table(title, lambda rng, size: text_group(texts, rng, size)), real_labels(rollouts)]
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        before, rest = options.write.read_text().split(BEGIN)
        options.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def markdown(title: str, columns: list[str], rows: Iterator[tuple[str, list[str]]]) -> str:
    """Return a Markdown table below its title."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join([name, *cells])} |" for name, cells in rows]
    return f"**{title}**\n\n" + "\n".join(lines)


def named_tables() -> str:
    """Tabulate K of single ids, each in a group of 8 correct and 8 wrong rollouts with 700 other tokens."""

    def rows() -> Iterator[tuple[str, list[str]]]:
        for name, table in TABLES.items():
            yield name, [f"{value_of(table, config):.3f}" for config in VARIANTS]

    title = "K of one id as a share of the range (8 correct and 8 wrong rollouts of 700 other tokens)"
    return markdown(title, ["id", *(config.variant for config in VARIANTS)], rows())


def value_of(table: tuple[int, int], config: KTAEConfig) -> float:
    """Return K, as a share of the range, of an id used once in `a` correct and `b` wrong rollouts of 16."""
    a, b = table
    ids = np.zeros((2 * SIDE, FILLER + 1), np.int64)
    mask = np.ones(ids.shape, bool)
    ids[:, 0] = 1
    mask[a:SIDE, 0] = mask[SIDE + b :, 0] = False
    found = explain_group(ids, mask, np.repeat([1.0, 0.0], SIDE), config)
    return float(found.value[found.token_id == 1][0]) / config.number("value_range")


def noise_table(title: str, draw: Callable[[np.random.Generator, int], Group]) -> str:
    """Tabulate mean |K| under labels that are independent of the tokens, by group size."""

    def rows() -> Iterator[tuple[str, list[str]]]:
        for size in SIZES:
            rng = np.random.default_rng(size)
            groups = [(*draw(rng, size), random_labels(rng, size)) for _ in range(LABELLINGS)]
            figures = [np.array([sizes(*group, config) for group in groups]) for config in VARIANTS]
            yield str(size), [noise_cell(figure) for figure in figures]

    title += f": mean size of K over tokens as a share of the range ± its standard error / ids with more than {LARGE:g}"
    return markdown(title, ["rollouts", *(config.variant for config in VARIANTS)], rows())


def noise_cell(figures: NDArray[np.float64]) -> str:
    """Return mean and standard error of |K| over labellings, and the mean share of large ids."""
    (mean, large), (spread, _) = figures.mean(axis=0), figures.std(axis=0, ddof=1) / np.sqrt(len(figures))
    return f"{mean:.4f} ± {spread:.4f} / {100 * large:.0f} %"


def sizes(
    ids: NDArray[np.int64], mask: NDArray[np.bool_], scores: NDArray[np.float64], config: KTAEConfig
) -> tuple[float, float]:
    """Return the mean |K| over tokens and the share of distinct ids with large |K|, both relative to the range."""
    values = compute_key_token_values(ids, mask, scores, np.zeros(len(ids), int), config).numpy()
    share = np.abs(values[mask]) / config.number("value_range")
    _, first_use = np.unique(ids[mask], return_index=True)
    return float(share.mean()), float((share[first_use] > LARGE).mean())


def random_labels(rng: np.random.Generator, rollouts: int) -> NDArray[np.float64]:
    """Draw labels with any number of correct rollouts except none and all."""
    return rng.permutation(np.arange(rollouts) < rng.integers(1, rollouts)).astype(float)


def zipf_groups(rng: np.random.Generator, rollouts: int) -> Group:
    """Draw rollouts of 300 to 1,100 ids."""
    batch = zipf_batch(1, VOCABULARY, rollouts, seed=int(rng.integers(2**31)))
    return batch.ids_BT.astype(np.int64), batch.mask_BT


def text_group(texts: list[list[int]], rng: np.random.Generator, rollouts: int) -> Group:
    """Draw responses without replacement; return their padded ids and mask."""
    return padded([texts[text] for text in rng.choice(len(texts), rollouts, replace=False)])


def padded(texts: list[list[int]]) -> Group:
    """Return ids and mask of texts, (B, T) each."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return ids, mask


def read_rollouts(path: Path, tokenizer: Path | None) -> tuple[list[tuple[str, list[int], float]], str]:
    """Return (benchmark, ids, reward) of each response, and a description of the tokens."""
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    if tokenizer:
        from transformers import AutoTokenizer

        encode = AutoTokenizer.from_pretrained(tokenizer)
        ids = [encode(row["response"], add_special_tokens=False)["input_ids"] for row in rows]
        name = f"{len(encode):,} subwords"
    else:
        words = [WORDS.findall(row["response"]) for row in rows]
        number = {word: o for o, word in enumerate(sorted({word for text in words for word in text}))}
        ids, name = [[number[word] for word in text] for text in words], "words, digits and signs"
    return [
        (r["benchmark"], text, float(r["published_reward"])) for r, text in zip(rows, ids, strict=True) if text
    ], name


def real_labels(rollouts: list[tuple[str, list[int], float]]) -> str:
    """Tabulate K with the responses' own labels, in groups of responses to one benchmark."""
    rng, groups = np.random.default_rng(0), []
    for benchmark in sorted({name for name, _, _ in rollouts}):
        mine = [rollout for rollout in rollouts if rollout[0] == benchmark]
        order = rng.permutation(len(mine))
        for first in range(0, len(mine) - REAL_GROUP + 1, REAL_GROUP):
            chosen = [mine[i] for i in order[first : first + REAL_GROUP]]
            scores = np.array([reward for _, _, reward in chosen])
            if 0 < (scores > 0).sum() < REAL_GROUP:
                groups.append((*padded([ids for _, ids, _ in chosen]), scores))

    def rows() -> Iterator[tuple[str, list[str]]]:
        figures = np.mean([[credit(*group, config) for config in VARIANTS] for group in groups], axis=0)
        names = (
            "mean size of K",
            "mean K in correct rollouts",
            "mean K in wrong rollouts",
            "tokens whose sign K flips",
        )
        for name, values in zip(names, figures.T, strict=True):
            yield name, [f"{value:.3f}" for value in values]

    title = f"Real rollouts with their own labels, {len(groups)} groups of {REAL_GROUP} responses to one benchmark"
    return markdown(f"{title}, absolute", ["", *(config.variant for config in VARIANTS)], rows())


def credit(
    ids: NDArray[np.int64], mask: NDArray[np.bool_], scores: NDArray[np.float64], config: KTAEConfig
) -> tuple[float, float, float, float]:
    """Return mean |K|, mean K in correct and in wrong rollouts, and the share of tokens whose advantage flips sign."""
    values = compute_key_token_values(ids, mask, scores, np.zeros(len(ids), int), config).numpy()
    base = ((scores - scores.mean()) / scores.std(ddof=1))[:, None]
    right = mask & (scores > 0)[:, None]
    flips = (base * (base + values) < 0)[mask].mean()
    return np.abs(values[mask]).mean(), values[right].mean(), values[mask & ~right].mean(), flips


if __name__ == "__main__":
    main()
