"""Examples are scripts, not packages: tests load them by path."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@contextmanager
def imports_from(folder):
    """Import siblings from `folder`, even if another example's files of the same names were imported before."""
    places = list(sys.path)
    sys.path.insert(0, str(folder))
    forget_siblings()
    try:
        yield
    finally:
        sys.path[:] = places
        forget_siblings()


def forget_siblings():
    for name in ("make_task", "make_model"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def examples():
    return EXAMPLES


@pytest.fixture(scope="session")
def load_benchmarks():
    """Import `benchmarks/<name>.py` with its folder on the path, as when run."""

    def load(*names):
        with imports_from(EXAMPLES.parent / "benchmarks"):
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
        with imports_from(path.parent):
            spec.loader.exec_module(module)
        return module

    return load
