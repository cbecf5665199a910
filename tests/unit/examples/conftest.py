"""Examples are scripts, not packages: tests load them by path."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="session")
def examples():
    return EXAMPLES


@pytest.fixture(scope="session")
def load_example():
    """Load `examples/<name>` as a module, with its own folder on the path as when it is run."""

    def load(name):
        path = EXAMPLES / name
        module_name = "example_" + name.removesuffix(".py").replace("/", "_")
        if module_name in sys.modules:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up
        before, places = set(sys.modules), list(sys.path)
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path[:] = places
            for name in {"make_task", "make_model"} - before:  # other examples have files of the same names
                sys.modules.pop(name, None)
        return module

    return load
