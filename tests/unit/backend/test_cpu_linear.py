"""Linear layers that choose their kernel give torch's products and gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from openrlhf_ktae.backend import cpu_linear
from openrlhf_ktae.backend.cpu_linear import ChosenLinear, by_onednn, by_torch, use_faster_products
from openrlhf_ktae.base.temporarily import temporarily


def both(columns, rows, bias=True, lead=0.0):
    """Return a torch layer and our copy, which uses oneDNN unless torch has a `lead`."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(columns, rows, bias=bias)
    other = torch.nn.Linear(columns, rows, bias=bias)
    other.load_state_dict(plain.state_dict())
    assert use_faster_products(other, {(rows, columns): lead}) == 1
    return plain, other


def gradients(layer, x, weights):
    x = x.clone().requires_grad_(True)
    y = layer(x)
    (y * weights).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("lead", [0.0, 2.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(0,), (1,), (7,), (2, 5), (2, 3, 4)])
def test_products_and_gradients_are_torchs(batch, bias, lead):
    plain, other = both(48, 80, bias, lead)
    assert other.multiply is (by_torch if lead else by_onednn)
    x, weights = torch.randn(*batch, 48), torch.randn(*batch, 80)
    for expected, found in zip(gradients(plain, x, weights), gradients(other, x, weights), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("used", [[], [3], [0, 2, 5], range(6)])
def test_rows_without_a_gradient_are_left_out_of_a_wide_layer(used):
    """These are the logits of prompts and padding, a third or more of an update's rows."""
    plain, other = both(8, 8 * cpu_linear.WIDE, bias=False)
    x, weights = torch.randn(2, 3, 8), torch.zeros(6, 8 * cpu_linear.WIDE)
    weights[list(used)] = torch.randn(len(used), weights.size(1))
    weights = weights.view(2, 3, -1)
    expected = gradients(plain, x, weights)
    rows = []
    other.multiply = lambda a, b: rows.append(a.shape) or by_onednn(a, b)
    for tensor, found in zip(expected, gradients(other, x, weights), strict=True):
        torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-4)
    assert rows[1][0] == rows[2][1] == len(used)


@pytest.fixture(scope="module")
def actor():
    """A tiny model in the host's `Actor` and in our subclass, with equal weights."""
    from openrlhf_ktae.backend.cpu_patches import activate

    activate()
    from openrlhf.models.actor import Actor
    from transformers import LlamaConfig, LlamaForCausalLM

    from openrlhf_ktae.trainer.ray.cpu_actors import CpuActor

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = []
    for kind in (Actor, CpuActor):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=640, max_position_embeddings=64, **sizes))
        use_faster_products(model, {})
        made.append(kind(model))
        made[-1].packing_samples = False
    assert cpu_linear.save_less_of_gates(made[1].model) == 2
    return made


def scored(actor, weights, acted):
    """Return log-probabilities with gradients, and the sizes of tensors saved for backward."""
    ids = torch.arange(4 * 24).view(4, 24) % 640
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    actor.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found, _ = actor(ids, acted, torch.ones_like(ids), return_output=True)
    (found * weights).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in actor.parameters())], saved


@pytest.mark.parametrize("rows", [1, 8, 12])
def test_logits_of_action_tokens_give_the_hosts_results_to_the_bit(actor, rows):
    """Includes zero gradients, and so few action tokens that small-batch kernels would round differently."""
    acted = torch.zeros(4, 23)
    acted[:, -rows:] = 1
    weights = torch.randn(4, 23)
    weights[1] = 0
    expected, before = scored(actor[0], weights, acted)
    found, after = scored(actor[1], weights, acted)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    logits = 4 * 24 * 640 * 4
    assert logits in before.values()
    assert logits not in after.values()
    assert len(after) <= len(before) - 5, "two per feed-forward layer, and the logits"
    assert actor[1].model.lm_head.asked is None


def test_temperature_scales_the_logits_and_their_gradient(actor, monkeypatch):
    ids, acted = torch.arange(48).view(2, 24), torch.ones(2, 23)
    x, weights = torch.randn(2, 24, 32), torch.randn(2, 24)
    head = actor[1].model.lm_head
    found = []
    for asked in (cpu_linear.Asked(ids, torch.ones(2, 24, dtype=torch.bool), 0.7), None):
        inner = x.clone().requires_grad_(True)
        if asked:
            with temporarily(head, asked=asked):
                scores = head(inner).squeeze(-1)
        else:
            scores = (head(inner) / 0.7).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        (scores * weights).sum().backward()
        found.append([scores.detach(), inner.grad])
    torch.testing.assert_close(found[0], found[1])
    plain, _ = actor[1](ids, acted, torch.ones_like(ids), return_output=True)
    monkeypatch.setattr(actor[1], "temperature", 0.7)
    assert not torch.equal(actor[1](ids, acted, torch.ones_like(ids), return_output=True)[0], plain)
    assert actor[1].temperature == 0.7


def test_only_a_wide_last_layer_skips_logits():
    narrow = torch.nn.Linear(8, 8 * cpu_linear.WIDE - 1, bias=False)
    wide = torch.nn.Linear(8, 8 * cpu_linear.WIDE, bias=False)
    assert not cpu_linear.is_wide(wide), "a plain torch layer"
    use_faster_products(torch.nn.ModuleList([narrow, wide]), {})
    assert (cpu_linear.is_wide(narrow), cpu_linear.is_wide(wide)) == (False, True)


def test_full_logits_are_available_on_request(actor):
    ids, acted = torch.ones(2, 8, dtype=torch.long), torch.ones(2, 7)
    _, output = actor[1](ids, acted, torch.ones_like(ids), return_output=True, return_entropy=True)
    assert output.logits.shape == (2, 8, 640)
    assert output.entropy.shape == (2, 7)


def test_nan_gradients_are_not_skipped():
    _, layer = both(8, 8 * cpu_linear.WIDE)
    weights = torch.zeros(2, layer.out_features)
    weights[1] = torch.nan
    _, of_x, of_weight, _ = gradients(layer, torch.randn(2, 8), weights)
    assert of_x[1].isnan().all()
    assert of_weight.isnan().all()
    assert not of_x[0].any(), "the other row's gradient must stay 0"


def test_two_calls_are_bit_identical():
    _, layer = both(576, 192)
    x, weights = torch.randn(3, 40, 576), torch.randn(3, 40, 192)
    first = [t.clone() for t in gradients(layer, x, weights)]
    layer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(layer, x, weights), strict=True))


def test_inputs_that_are_not_plain_matrices():
    plain, other = both(16, 24)
    x = torch.randn(16, 10).t()  # strides of a transposed matrix
    torch.testing.assert_close(other(x), plain(x))
    x = torch.randn(8, 32)[:, ::2]
    torch.testing.assert_close(other(x), plain(x))
    x, g = torch.randn(6, 16), torch.randn(6, 1).expand(6, 24)  # an expanded gradient
    torch.testing.assert_close(gradients(other, x, g)[1], gradients(plain, x, g)[1])


def test_frozen_weights_get_no_gradient():
    _, layer = both(16, 24)
    layer.requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 16))


def test_only_plain_layers_of_fp32_are_changed():
    class Special(torch.nn.Linear):
        pass

    layers = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, dtype=torch.bfloat16), Special(4, 4), torch.nn.LayerNorm(4)
    model = torch.nn.Sequential(*layers)
    names = list(model.state_dict())
    assert use_faster_products(model, {}) == 1
    assert [type(layer) for layer in model] == [ChosenLinear, torch.nn.Linear, Special, torch.nn.LayerNorm]
    assert list(model.state_dict()) == names
    assert use_faster_products(model, {}) == 0


@pytest.mark.parametrize("instructions", ["SSE41", "DEFAULT"])
def test_the_faster_kernel_of_the_processor_is_chosen(instructions):
    """Without AVX, oneDNN is slower than torch's MKL on every processor."""
    script = """
import torch
from openrlhf_ktae.backend.cpu_linear import by_torch, described, measured_leads, use_faster_products
torch.set_num_threads(1)
layers = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512))
state = torch.get_rng_state()
leads = measured_leads(layers)
assert torch.equal(state, torch.get_rng_state())
use_faster_products(layers, leads)
assert [layer.multiply is by_torch for layer in layers] == [leads[layer.weight.shape] > 1.1 for layer in layers]
assert set(described(leads)) == {"512 x 512", "2048 x 512", "512 x 2048"}
print(*(f"{lead:.3f}" for lead in leads.values()))
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    if instructions == "SSE41":
        assert min(map(float, done.stdout.split())) > 1.1
