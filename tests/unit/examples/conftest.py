"""Examples are scripts, not packages: tests load them by path."""

import importlib.util
import sys
from pathlib import Path

import pytest

from openrlhf_ktae.base.user_files import with_its_folder

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="session")
def examples():
    return EXAMPLES


@pytest.fixture(scope="session")
def load_benchmarks():
    """Import `benchmarks/<name>.py` with its folder on the path, as when run."""

    def load(*names):
        with with_its_folder(EXAMPLES.parent / "benchmarks" / "any.py"):
            return [importlib.import_module(name) for name in names]

    return load


@pytest.fixture(scope="session")
def load_example():
    """Load `examples/<name>` as a module, with its folder on the path, as when run."""

    def load(name):
        path = EXAMPLES / name
        module_name = "example_" + name.removesuffix(".py").replace("/", "_")
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look up their module
        with with_its_folder(path):
            spec.loader.exec_module(module)
        return module

    return load
