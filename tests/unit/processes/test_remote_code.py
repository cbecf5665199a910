"""A hostile model folder's code does not run, even if the caller passes `trust_remote_code=True`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from marks import SLOW

from openrlhf_ktae.processes.remote_code import REFUSED, VARIABLE

EVIL = """
import os
from transformers import {base} as Base
open(os.environ["EVIL_FILE"], "a").write("{name} ran")
class {name}(Base):
    pass
"""
# Like the host's driver, trainer and reward model, which always pass the flag.
AS_A_WORKER = """
import sys
from openrlhf_ktae.processes.setup import in_worker
in_worker()
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
print(type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__)
print(type(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)).__name__)
print(type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)).__name__)
"""
# In an engine's process everything is imported before vLLM calls its plugins.
AS_AN_ENGINE = """
import sys
import vllm.transformers_utils.config as engine
import vllm.tokenizers
from transformers import AutoModelForCausalLM
from vllm.plugins import load_general_plugins
load_general_plugins()
folder = sys.argv[1]
print(type(engine.get_config(folder, trust_remote_code=True)).__name__)
print(type(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)).__name__)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
get_class_from_dynamic_module("modeling_evil.EvilModel", folder)
"""


@pytest.fixture
def hostile_model(root, tmp_path):
    """The quickstart's model with custom code for configuration, tokenizer and model."""
    folder = tmp_path / "hostile"
    shutil.copytree(root / "examples/quickstart/model", folder)
    classes = {
        "configuration_evil": ("EvilConfig", "Qwen2Config"),
        "modeling_evil": ("EvilModel", "Qwen2ForCausalLM"),
        "tokenization_evil": ("EvilTokenizer", "PreTrainedTokenizerFast"),
    }
    for module, (name, base) in classes.items():
        (folder / f"{module}.py").write_text(EVIL.format(name=name, base=base))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def run(script, folder, tmp_path, **variables):
    evil = tmp_path / "evil.txt"
    cache = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "EVIL_FILE": str(evil), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, **cache, **variables},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return done, evil


@SLOW
@pytest.mark.parametrize("script", [AS_A_WORKER, AS_AN_ENGINE], ids=["worker", "engine"])
def test_code_of_a_model_does_not_run(script, hostile_model, tmp_path):
    done, evil = run(script, hostile_model, tmp_path, **{VARIABLE: REFUSED})
    assert not evil.exists(), evil.read_text()
    assert "Evil" not in done.stdout
    assert "Qwen2ForCausalLM" in done.stdout, done.stderr
    if script is AS_AN_ENGINE:
        assert "--model.trust_remote_code" in done.stderr, "imports without asking must be refused, naming the flag"


@SLOW
def test_the_same_code_runs_where_it_is_trusted(hostile_model, tmp_path):
    """Otherwise the test above would pass with code that never runs."""
    done, evil = run(AS_A_WORKER, hostile_model, tmp_path)
    assert "EvilModel ran" in evil.read_text()
    assert "EvilConfig" in done.stdout, done.stderr


def test_only_the_flag_allows_remote_code():
    from openrlhf_ktae.processes.remote_code import environment

    assert environment(trusted=True) == {}
    assert environment(trusted=False) == {VARIABLE: REFUSED}


PICKLE = """
import sys, torch
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@SLOW
def test_a_pickle_among_the_weights_does_not_run(root, tmp_path):
    """We rely on transformers loading .bin files with `weights_only`."""
    import pickle

    import torch

    class Evil:
        def __reduce__(self):
            return os.system, (f"echo ran > {tmp_path / 'evil.txt'}",)

    folder = tmp_path / "pickled"
    shutil.copytree(root / "examples/quickstart/model", folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    done, evil = run(PICKLE, folder, tmp_path)
    assert not evil.exists()
    assert done.returncode != 0
    assert "weights_only" in done.stderr.lower() or "Unsupported" in done.stderr, done.stderr[-2000:]


def test_a_loading_script_of_a_data_set_does_not_run(tmp_path):
    from datasets import load_dataset

    folder = tmp_path / "evil_data"
    folder.mkdir()
    (folder / "evil_data.py").write_text(f"open({str(tmp_path / 'evil.txt')!r}, 'w').write('ran')\n")
    with pytest.raises((RuntimeError, FileNotFoundError, ValueError, OSError)):
        load_dataset(str(folder), trust_remote_code=True)
    assert not (tmp_path / "evil.txt").exists()


AS_A_COMMAND = """
import sys
from openrlhf_ktae.cli.command import load_tokenizer
from openrlhf_ktae.cli.eval import _model_length
for load in (lambda: load_tokenizer(sys.argv[1], "--model"), lambda: _model_length(sys.argv[1])):
    try:
        print(load())
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_command_does_not_prompt_for_remote_code(hostile_model, tmp_path):
    """By default transformers asks on the terminal and runs the code after `y`."""
    config = json.loads((hostile_model / "config.json").read_text())
    (hostile_model / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    evil = tmp_path / "evil.txt"
    done = subprocess.run(
        [sys.executable, "-c", AS_A_COMMAND, str(hostile_model)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "EVIL_FILE": str(evil)},
        input="y\ny\ny\ny\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not evil.exists(), done.stdout
