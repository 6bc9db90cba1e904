"""Models from run specs: the family's architecture, the same bits everywhere, mistakes named."""

from __future__ import annotations

import hashlib
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from distributed_training.model.build import build
from distributed_training.model.layout import Layout, flatten
from distributed_training.run import ModelSpec
from template.errors import ConfigurationError
from tests.engine.tiny import GPT2, LLAMA


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in module.named_parameters()}


def test_the_same_seed_gives_the_same_bits() -> None:
    """Initial weights depend on the seed and on nothing else."""
    torch.manual_seed(1)
    first = flatten(build(GPT2, 61, 16, seed=7))
    torch.manual_seed(2)
    assert flatten(build(GPT2, 61, 16, seed=7)).tobytes() == first.tobytes()
    assert not np.array_equal(flatten(build(GPT2, 61, 16, seed=8)), first)


def test_building_leaves_the_global_generator_alone() -> None:
    """Nobody's random numbers change because a model was built."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    build(LLAMA, 61, 16, seed=7)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scales_are_those_of_the_family(family: str) -> None:
    """Each tensor has the mean and deviation that transformers' own initialisation gives it."""
    torch.manual_seed(0)
    if family == "gpt2":
        spec = ModelSpec(family="gpt2", config={"n_layer": 3, "n_head": 2, "n_embd": 64})
        reference: Any = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_positions=64, n_layer=3, n_head=2, n_embd=64))
    else:
        spec = LLAMA
        reference = LlamaForCausalLM(LlamaConfig(vocab_size=200, **LLAMA.config))
    ours = parameters(build(spec, 200, 64, seed=1))
    theirs = parameters(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        noise = theirs[name].std().item() / tensor.numel() ** 0.5
        assert tensor.mean().item() == pytest.approx(theirs[name].mean().item(), abs=6 * noise), name
        assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.15), name


def test_weights_are_normal_and_independent_between_tensors() -> None:
    """Moments of a large tensor are those of a normal distribution, and no two tensors share their numbers."""
    weights = parameters(build(ModelSpec(family="gpt2", config={**GPT2.config, "n_embd": 128}), 500, 16, seed=1))
    values = weights["transformer.wte.weight"].flatten().double() / 0.02
    assert values.std().item() == pytest.approx(1, abs=0.01)
    assert (values**4).mean().item() == pytest.approx(3 - 1.2 / 8, abs=0.1)
    a, b = (weights[f"transformer.h.{i}.mlp.c_fc.weight"].flatten().tolist() for i in (0, 1))
    assert abs(statistics.correlation(a, b)) < 0.02


def test_an_element_is_the_centred_sum_of_eight_integers() -> None:
    """The definition, computed again one element at a time in integers."""
    name = "transformer.h.0.mlp.c_fc.weight"
    values = parameters(build(GPT2, 61, 16, seed=5))[name].flatten()
    stream = np.random.Philox(key=int.from_bytes(hashlib.sha256(f"5/{name}".encode()).digest()[:16], "little"))
    for index in range(20):
        words = [int(word) for word in stream.random_raw(2)]
        total = sum((word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)) - 4 * 65535
        expected = np.float32(total * (0.02 / (8 * (2**32 - 1) / 12) ** 0.5))
        assert values[index].item() == expected


@pytest.mark.parametrize("spec", [GPT2, LLAMA])
def test_no_dropout(spec: ModelSpec) -> None:
    """Two passes in training mode give the same bits."""
    module = build(spec, 61, 16, seed=1).train()
    ids = torch.arange(32).reshape(2, 16)
    assert torch.equal(module(input_ids=ids).logits, module(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 2}, "n_layers"),
        ({"resid_pdrop": 0.1}, "dropout is always off"),
        ({"n_embd": "128"}, "n_embd must be of type int"),
        ({"n_embd": True}, "n_embd must be of type int"),
        ({"n_layer": 0}, "n_layer is too small"),
        ({"n_head": 3}, "divisible"),
        ({"activation_function": "gelu_old"}, "gelu_old"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    """An unknown or impossible key is refused by name."""
    with pytest.raises(ConfigurationError, match=message):
        build(ModelSpec(family="gpt2", config={**GPT2.config, **change}), 61, 16, seed=1)


def test_missing_sizes_are_not_invented() -> None:
    """A spec without its sizes does not become transformers' default model."""
    with pytest.raises(ConfigurationError, match=r"missing keys in model\.config: n_embd, n_head"):
        build(ModelSpec(family="gpt2", config={"n_layer": 2}), 61, 16, seed=1)


def test_key_heads_must_divide() -> None:
    """A Llama that could be built but never run is refused."""
    with pytest.raises(ConfigurationError, match="must divide"):
        build(ModelSpec(family="llama", config={**LLAMA.config, "num_key_value_heads": 3}), 61, 16, seed=1)


def test_positions_are_as_many_as_tokens() -> None:
    """GPT-2 has one learned position for each token of a sample."""
    shapes = {tensor.name: tensor.shape for tensor in Layout.of(build(GPT2, 61, 16, seed=1)).tensors}
    assert shapes["transformer.wpe.weight"] == (16, 32)
