"""What the round needs of the codecs (codecs/ has them; they know nothing of rounds)."""

from __future__ import annotations

from distributed_training.averaging.codecs.codec import Codec, Floats, within
from distributed_training.averaging.codecs.registry import CodecPair, codec_named, pair_named

__all__ = ["Codec", "CodecPair", "Floats", "codec_named", "pair_named", "within"]
