"""`make gpu-contract`: install and test the GPU builds on a machine without a GPU; the result goes to docs/gpu.md.

It installs like `make setup-gpu`, but builds flash-attn without its kernels. Then it runs `pip check`, imports every
module of this package, and runs contract and unit tests.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- gpu-contract: begin -->", "<!-- gpu-contract: end -->"
SHOWN = ("torch", "vllm", "deepspeed", "ray", "transformers", "flash-attn", "nvidia-nccl-cu13", "openrlhf")
IMPORT_ALL = """
import importlib, pkgutil, sys
from openrlhf_ktae.backend.cuda import CudaBackend
CudaBackend().prepare_driver()
import openrlhf_ktae
count, failed = 0, []
for module in pkgutil.walk_packages(openrlhf_ktae.__path__, "openrlhf_ktae."):
    try:
        importlib.import_module(module.name)
        count += 1
    except Exception as error:
        if getattr(error, "name", "") not in ("trl", "verl"):  # adapters for trainers that are not installed
            failed.append(f"{module.name}: {type(error).__name__}: {error}")
print("\\n".join(failed), file=sys.stderr)
print(count, len(failed))
"""


def main() -> int:
    """Install, check, import, test and write the page; return 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-gpu")
    parser.add_argument("--tests", nargs="+", default=["tests/contract", "tests/unit"], metavar="PATH")
    parser.add_argument("--jobs", default=str(len(os.sched_getaffinity(0))), help="processes that test (all cores)")
    options = parser.parse_args()
    python = str(options.venv.absolute() / "bin/python")
    environment = {**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE", "PATH": _first_on_path(python)}
    begin = time.monotonic()
    install = [sys.executable, str(ROOT / "requirements/setup_gpu.py"), "--venv", str(options.venv)]
    if subprocess.run(install, env=environment).returncode:
        return 1
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    pins = [word for name in ("dev", "report") for word in ("-r", str(ROOT / f"requirements/{name}.txt"))]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *pins], check=True)
    installed = time.monotonic()
    consistent = subprocess.run([*pip, "check"]).returncode == 0
    done = subprocess.run([python, "-c", IMPORT_ALL], env=environment, cwd=ROOT, capture_output=True, text=True)
    print(done.stderr.strip() if done.returncode else "", file=sys.stderr)
    modules, broken = map(int, (done.stdout.split() or ["0", "1"])[-2:])
    if broken:
        print(done.stderr, file=sys.stderr)
    counted = options.venv / "gpu-contract.xml"
    tests = [python, "-m", "pytest", *options.tests, "-n", options.jobs, "--dist", "loadfile", "--durations", "10"]
    subprocess.run([*tests, "--continue-on-collection-errors", f"--junitxml={counted}"], env=environment, cwd=ROOT)
    ended = time.monotonic()
    suite = ElementTree.parse(counted).getroot().find("testsuite").attrib
    failed = int(suite["failures"]) + int(suite["errors"])
    passed = int(suite["tests"]) - failed - int(suite["skipped"])
    listed = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout
    versions = {
        name: found[1] for name in SHOWN if (found := re.search(rf"(?mi)^{name}==(\S+)", listed.replace("_", "-")))
    }
    disk = subprocess.run(["du", "-sk", str(options.venv)], capture_output=True, text=True, check=True).stdout.split()[
        0
    ]
    lines = [
        f"| date | {datetime.date.today()}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in versions.items())} |",
        f"| installation | {installed - begin:.0f} s, {int(disk) / 2**20:.1f} GiB; `pip check` "
        f"{'finds nothing' if consistent else '**finds conflicts**'} |",
        f"| modules imported | {modules}, {broken} failed |",
        f"| {', '.join(options.tests)} | {passed} passed, {failed} failed, {suite['skipped']} skipped in "
        f"{ended - installed:.0f} s |",
    ]
    _write(lines)
    print("\n".join(lines))
    return 1 if failed or broken or not consistent else 0


def _first_on_path(python: str) -> str:
    return f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"


def _write(lines: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(["| | |", "|---|---|", *lines])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
