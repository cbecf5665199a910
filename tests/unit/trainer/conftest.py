"""Fixtures of trainer tests: the experience maker's module, and the quickstart's tokenizer."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def module(host):
    from openrlhf_ktae.trainer.ppo_utils import experience_maker

    return experience_maker


@pytest.fixture(scope="module")
def tokenizer(root):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "examples/quickstart/model")
