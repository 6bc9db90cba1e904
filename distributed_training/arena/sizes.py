"""The models of the arena: NanoGPT as GPT-2 with tied embeddings, in sizes from a CPU's to a large GPU's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distributed_training.run import ModelSpec
from template.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Size:
    """Layers, heads, width, block (tokens of a sequence), vocabulary, and samples a node and step."""

    layers: int
    heads: int
    width: int
    block: int
    vocabulary: int
    samples: int

    @property
    def spec(self) -> ModelSpec:
        """What model/build.py takes. The activation is GPT-2's, by the kernel that computes it at once."""
        config = {
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_embd": self.width,
            "activation_function": "gelu_pytorch_tanh",
        }
        return ModelSpec(family="gpt2", config=config)


BYTES = 256
GPT2 = 50304  # GPT-2's 50,257, up to a multiple of 64

SIZES: Mapping[str, Size] = {
    "fixture": Size(layers=4, heads=4, width=128, block=128, vocabulary=BYTES, samples=8),
    "nano": Size(layers=2, heads=4, width=64, block=64, vocabulary=BYTES, samples=8),
    "small": Size(layers=4, heads=4, width=128, block=1024, vocabulary=GPT2, samples=256),
    "base": Size(layers=12, heads=12, width=768, block=1024, vocabulary=GPT2, samples=256),
    "medium": Size(layers=24, heads=16, width=1024, block=1024, vocabulary=GPT2, samples=256),
    "large": Size(layers=36, heads=20, width=1280, block=1024, vocabulary=GPT2, samples=256),
    "xl": Size(layers=48, heads=25, width=1600, block=1024, vocabulary=GPT2, samples=256),
}


def size_named(name: str) -> Size:
    """The size of that name; ConfigurationError if there is none."""
    if name not in SIZES:
        raise ConfigurationError(f"unknown model '{name}'; known: {', '.join(SIZES)}")
    return SIZES[name]
