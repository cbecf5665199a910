"""Norms that save less for backward: equal to the model's to the bit."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from openrlhf_ktae.backend.cpu_norms import save_less_of_norms

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 4}


def losses_and_gradients(model, ids):
    loss = model(ids, labels=ids).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize(("model", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def test_values_and_gradients_are_equal_and_less_is_saved(model, config):
    torch.manual_seed(0)
    usual = model(config(**SIZES)).float()
    for name, weight in usual.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.3)
    changed = copy.deepcopy(usual)
    assert save_less_of_norms(changed) == 5
    ids = torch.randint(0, 50, (3, 17))
    sizes = []
    for one in (usual, changed):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            one.loss = one(ids, labels=ids).loss
        sizes.append(sum(saved.values()))
        del one.loss
    assert sizes[0] - sizes[1] >= 4 * 3 * 17 * 64 * 4, "the normalized input of at least four norms"
    for a, b in zip(losses_and_gradients(usual, ids), losses_and_gradients(changed, ids), strict=True):
        assert torch.equal(a, b)


def test_norms_of_other_forms_and_dtypes_stay():
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16()
    model.more = torch.nn.RMSNorm(8)
    assert save_less_of_norms(model) == 0
