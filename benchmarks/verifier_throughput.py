"""Throughput of the verifier on real responses, compared with math-verify called directly.

    python benchmarks/verifier_throughput.py ROLLOUTS.jsonl.gz [--repeats 3]

Rows of ROLLOUTS have `gold` and `response`. Rates are checks per second of wall time, with workers already started, and
without a cache unless noted. Prints a table, checks the promises of docs/verifier.md and exits with 1 if one is broken.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from openrlhf_ktae.verifier import Verifier
from openrlhf_ktae.verifier.extract import extract_answer
from openrlhf_ktae.verifier.golds import gold_forms

HOSTILE = [
    "9^{9^{9^9}}",
    r"3^{\left(3^{\left(3^{(3^3)}\right)}\right)}",
    "((((9!)!)!)!)",
    "7" * 30000,
    r"\sum_{k=1}^{10000000} \frac{1}{k^2}",
    r"\sqrt[3]{" * 30 + "9^{9^{9^9}}" + "}" * 30,
    "{" * 10000 + "6" + "}" * 10000,
    "(a+b+c+d+e+f+g+h)^{500}",
    r"\binom{1000000000}{500000000}",
    r"\{" + ",".join(rf"\{{{n}\}}" for n in range(3000)) + r"\}",
    r"\sin(10^{10000000})",
    "__import__('os').abort()",
]
HOSTILE_EVERY = 20  # one in 20
Pair = tuple[object, str]


def read_pairs(path: Path) -> list[Pair]:
    """Return (gold, response) of each row."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [(row["gold"], row["response"]) for row in map(json.loads, lines)]


def math_verify_rate(pairs: Sequence[Pair]) -> float:
    """Return checks per second of math-verify as usually called: gold in a box, whole response, its own timeouts."""
    from math_verify import parse, verify

    verify(parse(r"\boxed{\frac{1}{2}}"), parse(r"\boxed{0.5}"))
    begun = time.perf_counter()
    for gold, response in pairs:
        read = [parse(f"\\boxed{{{form}}}") for form in gold_forms(gold)]
        given = parse(response)
        any(verify(form, given) for form in read)
    return len(pairs) / (time.perf_counter() - begun)


def verifier_rate(pairs: Sequence[Pair], workers: int, cache_size: int = 0) -> tuple[float, list[str]]:
    """Return checks per second, and the verdicts."""
    with Verifier(workers=workers, cache_size=cache_size) as verifier:
        verifier.verify_many(
            [(rf"\frac{{{n}}}{{7}}", rf"\boxed{{\frac{{{2 * n}}}{{14}}}}") for n in range(8 * workers)]
        )
        begun = time.perf_counter()
        verdicts = verifier.verify_many(pairs)
        seconds = time.perf_counter() - begun
    return len(pairs) / seconds, [verdict.status for verdict in verdicts]


def second_pass_rate(pairs: Sequence[Pair]) -> float:
    """Return checks per second for (gold, answer) pairs seen before."""
    with Verifier(workers=2) as verifier:
        verifier.verify_many(pairs)
        begun = time.perf_counter()
        verifier.verify_many(pairs)
        return len(pairs) / (time.perf_counter() - begun)


def needs_worker(pair: Pair) -> bool:
    """Return whether a worker must decide the pair (see `Verifier._settle`)."""
    return Verifier._settle(gold_forms(pair[0]), extract_answer(pair[1])) is None


def with_hostile(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with every twentieth response replaced by a hostile one."""
    return [
        (gold, f"\\boxed{{{HOSTILE[index // HOSTILE_EVERY % len(HOSTILE)]}}}")
        if index % HOSTILE_EVERY == 0
        else (gold, response)
        for index, (gold, response) in enumerate(pairs)
    ]


def spin() -> None:
    """Keep a core busy."""
    while True:
        sum(range(10000))


def under_load(measure: Callable[[], tuple[float, list[str]]]) -> tuple[float, list[str]]:
    """Call `measure` while twice as many other processes as cores are busy."""
    burners = [multiprocessing.Process(target=spin, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        return measure()
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


def on_one_core(measure: Callable[[], float]) -> float:
    """Call `measure` with this process and its children on a single core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, allowed)


def main() -> int:
    """Measure, print, and check the promises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollouts", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not args.rollouts.is_file():
        parser.error(f"{args.rollouts}: no such file")
    pairs = read_pairs(args.rollouts)
    hard = [pair for pair in pairs if needs_worker(pair)]
    print(
        f"{len(pairs)} responses, {len(hard)} of them need a worker; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; medians of {args.repeats}"
    )

    def median(measure: Callable[[], float]) -> float:
        return statistics.median(measure() for _ in range(args.repeats))

    rates = {"math-verify, one process": math_verify_rate(pairs)}
    print(f"{'math-verify, one process':<44} {rates['math-verify, one process']:>9.0f}/s")

    def report(name: str, measure: Callable[[], float]) -> None:
        rates[name] = median(measure)
        print(f"{name:<44} {rates[name]:>9.0f}/s")

    report("1 worker, all on one core", lambda: on_one_core(lambda: verifier_rate(pairs, 1)[0]))
    for workers in (1, 2, 4):
        report(f"{workers} workers", lambda workers=workers: verifier_rate(pairs, workers)[0])  # type: ignore[misc]
    for workers in (1, 2, 4):
        report(f"{workers} workers, only what needs one", lambda workers=workers: verifier_rate(hard, workers)[0])  # type: ignore[misc]
    report("2 workers, 5 % hostile", lambda: verifier_rate(with_hostile(pairs), 2)[0])
    report("the same once more, from the cache", lambda: second_pass_rate(hard))
    free, loaded = verifier_rate(pairs, 2)[1], under_load(lambda: verifier_rate(pairs, 2))[1]
    differing = sum(a != b for a, b in zip(free, loaded, strict=True))
    print(f"verdicts that differ with {2 * (os.cpu_count() or 1)} busy processes beside: {differing}")

    promises = {
        "at least 2.5 times math-verify": rates["1 workers"] >= 2.5 * rates["math-verify, one process"],
        "at least 90 checks/s on one core": rates["1 worker, all on one core"] >= 90,
        "grows with the workers": rates["2 workers, only what needs one"]
        > 1.2 * rates["1 workers, only what needs one"],
        "5 % hostile: at most 3 times the clean time": rates["2 workers, 5 % hostile"] * 3 >= rates["2 workers"],
        "the cache serves repeated answers": rates["the same once more, from the cache"]
        > 2 * rates["2 workers, only what needs one"],
        "verdicts do not depend on load": differing == 0,
    }
    for promise, holds in promises.items():
        print(f"{'holds  ' if holds else 'BROKEN '} {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
