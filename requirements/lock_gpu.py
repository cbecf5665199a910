"""Write `requirements/gpu.txt`, or compare it with pip's current resolution: `make lock-gpu`, `make check-lock-gpu`.

pip resolves the host with its extras and this package's own dependencies without installing anything. flash-attn is
left out: its metadata can be read only if torch is installed, and its dependencies (torch, einops) are included
anyway. Each given Python is resolved; a package that differs between them gets a line for each.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "gpu.txt"
HOST = "openrlhf"
EXTRAS = ("ring", "vllm")
# Build dependencies of DeepSpeed and flash-attn besides torch. setuptools 77.0.3 fails (`Command.__init__() got an
# unexpected keyword argument 'use_ninja'`), and vLLM requires a version below 81.
BUILD = ("ninja", "packaging", "psutil", "setuptools==80.10.2", "wheel")
LEFT_OUT = "flash-attn"
LOCAL_BUILDS = ("torch", "torchaudio", "torchvision")  # an index may also have CPU builds of these, 2.13.0+cpu
PYTHONS = ("3.11", "3.12")
HEAD = """\
# Everything that the CUDA backend runs on but flash-attn, pinned by `make lock-gpu` for Python 3.11 and 3.12 on Linux:
# `pip install --no-deps -r requirements/gpu.txt`. `make setup-gpu` does that and the rest; docs/gpu.md says more.
# === instead of ==: no local build (2.13.0+cpu) is taken where an index of those is configured.
"""
Pins = dict[str, str]
"""Package -> version, for one Python."""


class CannotResolve(RuntimeError):
    """pip found no resolution."""


def main(argv: list[str] | None = None) -> int:
    """Write the lock, or compare; return 0 if written or equal, 1 if different, 2 if pip could not resolve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare; differences give exit code 1")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters to resolve for")
    options = parser.parse_args(argv)
    text = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    try:
        today = dict(resolved(python) for python in options.python)
    except CannotResolve as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        found = [line for python, pins in today.items() for line in differences(python, read(text, python), pins)]
        print("\n".join(found) or f"requirements/gpu.txt equals pip's current resolution for Python {', '.join(today)}")
        if found:
            print("differs from requirements/gpu.txt: run `make lock-gpu`, then `make gpu-contract`", file=sys.stderr)
        return 1 if found else 0
    before = {python: pins for python in PYTHONS if (pins := read(text, python))}
    LOCK.write_text(written({**before, **today}), encoding="utf-8")
    print(f"{LOCK.name}: " + ", ".join(f"{len(pins)} packages for Python {python}" for python, pins in today.items()))
    return 0


def resolved(python: str) -> tuple[str, Pins]:
    """Return an interpreter's version and the packages that pip would install for it.

    Raises:
        CannotResolve: pip failed; the message has its last lines.
    """
    (host,) = _report(python, ["--no-deps", f"{HOST}=={_host_version()}"])
    needed = host["metadata"].get("requires_dist", [])
    roots = [f"{HOST}=={_host_version()}", *_wanted(needed), *_own(), *BUILD]
    pins = {HOST: _host_version()}
    for package in _report(python, [root for root in roots if _name(root) != HOST]):
        pins[_name(package["metadata"]["name"])] = _plain(package["metadata"])
    said = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    return said.stdout.strip(), pins


def _report(python: str, words: list[str]) -> list[dict]:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "--ignore-installed", "--quiet"]
    done = subprocess.run([*command, "--report", "-", *words], capture_output=True, text=True)
    if done.returncode:
        raise CannotResolve(f"pip could not resolve for {python}:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout)["install"]


def _wanted(requirements: Iterable[str]) -> list[str]:
    """Return the host's requirements with `EXTRAS`, except flash-attn."""
    wanted = []
    for requirement in requirements:
        asked, _, marker = requirement.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if _name(asked) != LEFT_OUT and (extra is None or extra[1] in EXTRAS):
            wanted.append(asked.strip() + (f";{marker}" if marker and extra is None else ""))
    return wanted


def _own() -> list[str]:
    """Return the dependencies of this package; torch with === so that no local build is taken."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [one.replace("==", "===") if _name(one) in LOCAL_BUILDS else one for one in project["dependencies"]]


def _host_version() -> str:
    text = (HERE.parent / "openrlhf_ktae/base/host.py").read_text(encoding="utf-8")
    return re.search(r'^HOST_VERSION = "(.+)"', text, re.MULTILINE)[1]


def _name(requirement: str) -> str:
    """Return the normalised name of a requirement (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement.strip())[0]).lower()


def _plain(metadata: Mapping[str, str]) -> str:
    version = metadata["version"]
    if "+" in version:
        raise CannotResolve(f"{metadata['name']} {version} is a local build: pip uses an index of CPU builds")
    return version


def read(text: str, python: str) -> Pins:
    """Return the pins of a lock that apply to one Python (`3.11`)."""
    pins = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([\w.-]+)={2,3}([^\s;]+)(?: *; *python_version == \"([\d.]+)\")?", line.strip())
        if found and found[3] in (None, python):
            pins[found[1]] = found[2]
    return pins


def written(pins: Mapping[str, Pins]) -> str:
    """Return the text of a lock for some Pythons, `{"3.11": {"torch": "2.13.0"}}`: one line per package and version."""
    lines = []
    for package in sorted({package for one in pins.values() for package in one}):
        equals = "===" if package in LOCAL_BUILDS else "=="
        versions = {python: one[package] for python, one in pins.items() if package in one}
        if len(versions) == len(pins) and len(set(versions.values())) == 1:
            lines.append(f"{package}{equals}{next(iter(versions.values()))}")
        else:
            lines += [
                f'{package}{equals}{one} ; python_version == "{python}"' for python, one in sorted(versions.items())
            ]
    return HEAD + "\n".join(lines) + "\n"


def differences(python: str, locked: Pins, today: Pins) -> list[str]:
    """Return a line for each package that differs."""
    return [
        f"Python {python}: {package} {locked.get(package, 'absent')} -> {today.get(package, 'absent')}"
        for package in sorted(locked.keys() | today.keys())
        if locked.get(package) != today.get(package)
    ]


if __name__ == "__main__":
    sys.exit(main())
