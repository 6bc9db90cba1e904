"""How long nobody was heard of: in blocks, and not while the chain itself was silent."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_training.silence import FRESH_SECONDS, Silence
from template.clock import ManualClock


@dataclass
class Chain:
    block: int = 100


async def test_it_counts_the_blocks_since_the_last_word() -> None:
    """From its beginning, and anew after each word."""
    chain, clock = Chain(), ManualClock()
    silence = Silence(chain, clock)
    await clock.advance(FRESH_SECONDS)
    chain.block = 130
    assert silence.blocks == 30
    silence.heard()
    await clock.advance(60)
    assert silence.blocks == 0
    chain.block = 135
    assert silence.blocks == 5


async def test_many_blocks_at_once_are_no_silence() -> None:
    """A chain that could not be read comes back; the validators were heard of a second ago."""
    chain, clock = Chain(), ManualClock()
    silence = Silence(chain, clock)
    await clock.advance(1)
    chain.block = 5000
    assert silence.blocks == 0
