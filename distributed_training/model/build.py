"""Builds the transformers model that a run spec names, with initial weights that are the same bits on every machine.

Random weights are not drawn with torch: its normal distribution takes another code path on other processors. Each
tensor gets its own Philox stream, keyed by (seed, name); an element is the sum of eight 16-bit integers from it,
centred and scaled: integer arithmetic and one correctly rounded product, and close to normal (excess kurtosis -0.15).
Standard deviations follow the families' own schemes: `initializer_range`, and 1/sqrt(2 n_layer) of it for
GPT-2's residual projections; biases 0, norms 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from distributed_training.model.layout import Vector, ordered_parameters
from distributed_training.run import ModelSpec
from template.errors import ConfigurationError

_REQUIRED: Mapping[str, Mapping[str, type]] = {
    "gpt2": {"n_layer": int, "n_head": int, "n_embd": int},
    "llama": {"hidden_size": int, "intermediate_size": int, "num_hidden_layers": int, "num_attention_heads": int},
}
_OPTIONAL: Mapping[str, Mapping[str, type]] = {
    "gpt2": {
        "n_inner": int,
        "activation_function": str,
        "layer_norm_epsilon": float,
        "initializer_range": float,
        "scale_attn_by_inverse_layer_idx": bool,
        "tie_word_embeddings": bool,
        "bos_token_id": int,
        "eos_token_id": int,
    },
    "llama": {
        "num_key_value_heads": int,
        "head_dim": int,
        "hidden_act": str,
        "rms_norm_eps": float,
        "initializer_range": float,
        "rope_parameters": dict,
        "attention_bias": bool,
        "mlp_bias": bool,
        "tie_word_embeddings": bool,
        "bos_token_id": int,
        "eos_token_id": int,
    },
}
_BLOCK = 1 << 20  # elements drawn at a time


def build(spec: ModelSpec, vocab_size: int, sequence_length: int, seed: int) -> torch.nn.Module:
    """The model of `spec` on the CPU in float32, without dropout, initialised from `seed`. The global RNG is untouched.

    Learned positions are exactly `sequence_length`, so that every parameter takes part in every sample.

    Raises:
        ConfigurationError: unknown, missing or impossible keys in `model.config`.
    """
    config = _checked(spec)
    sizes = {"vocab_size": vocab_size, "attn_implementation": "sdpa"}
    tokens = {"bos_token_id": None, "eos_token_id": None}
    try:
        with torch.random.fork_rng(devices=[]):  # transformers draws weights of its own, replaced below
            module = _construct(spec.family, {**tokens, **config, **sizes}, sequence_length)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"model.config is not a {spec.family} model: {reason}") from error
    _initialise(module, seed)
    return module


def _construct(family: str, config: Mapping[str, Any], sequence_length: int) -> torch.nn.Module:
    module: torch.nn.Module
    if family == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        module = GPT2LMHeadModel(GPT2Config(**config, **off, n_positions=sequence_length))
    else:
        module = LlamaForCausalLM(
            LlamaConfig(**config, attention_dropout=0.0, max_position_embeddings=sequence_length),
        )
    return module.to(torch.float32)


def _checked(spec: ModelSpec) -> dict[str, Any]:
    """The spec's keyword arguments, once they are known, complete and of the right type."""
    known = {**_REQUIRED[spec.family], **_OPTIONAL[spec.family]}
    unknown = sorted(set(spec.config) - set(known))
    if any("drop" in key for key in unknown):
        raise ConfigurationError(f"model.config.{unknown[0]}: dropout is always off; records could not be recomputed")
    if unknown:
        raise ConfigurationError(
            f"unknown keys in model.config: {', '.join(unknown)}; known for {spec.family}: {', '.join(sorted(known))}"
        )
    missing = sorted(set(_REQUIRED[spec.family]) - set(spec.config))
    if missing:
        raise ConfigurationError(f"missing keys in model.config: {', '.join(missing)}")
    config = {key: _typed(key, value, known[key]) for key, value in spec.config.items()}
    heads, shared = config.get("num_attention_heads", 1), config.get("num_key_value_heads", 1)
    if heads % shared:
        raise ConfigurationError(f"model.config.num_key_value_heads = {shared} must divide the {heads} attention heads")
    return config


def _typed(key: str, value: Any, kind: type) -> Any:
    wanted = (int, float) if kind is float else (kind,)
    if type(value) not in wanted:
        raise ConfigurationError(f"model.config.{key} must be of type {kind.__name__}; found {value!r}")
    if kind is int and value < (0 if key.endswith("token_id") else 1):
        raise ConfigurationError(f"model.config.{key} is too small: {value}")
    return kind(value)


def _initialise(module: torch.nn.Module, seed: int) -> None:
    config: Any = module.config
    with torch.no_grad():
        for name, parameter in ordered_parameters(module):
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = float(config.initializer_range)
            if config.model_type == "gpt2" and name.endswith("c_proj.weight"):
                deviation /= math.sqrt(2 * config.n_layer)
            values = _draw(f"{seed}/{name}", parameter.numel(), deviation)
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def _draw(key: str, count: int, deviation: float) -> Vector:
    """`count` values of mean 0 and the given standard deviation, a pure function of `key`."""
    stream = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    scale = deviation / math.sqrt(8 * (2**32 - 1) / 12)  # the variance of one 16-bit integer is (2^32 - 1) / 12
    values = np.empty(count, dtype=np.float32)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        words = stream.random_raw(2 * size).astype("<u8").view("<u2").reshape(size, 8)
        sums = words.sum(axis=1, dtype=np.int64) - 4 * 65535
        values[start : start + size] = sums.astype(np.float64) * scale
    return values
