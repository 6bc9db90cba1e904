"""What hotkeys publish: bytes with their block, read as they were at any block."""

from __future__ import annotations

from typing import Any

import pytest
from bittensor import calls

from template.chain.commitments import Commitment, publish_commitment, read_block_hash, read_commitments
from template.errors import ChainRefused, ChainUnavailable, ConfigurationError


async def test_the_latest_one_of_each_hotkey(chain: Any, wallet: Any) -> None:
    """A later one takes its place; at an earlier block the earlier one is still there."""
    for name, data in (("m1", b"\x00\xff first"), ("m2", b"text")):
        await publish_commitment(chain.client, wallet(name), 1, data)
    before = await chain.client.block()
    chain.advance(3)
    await publish_commitment(chain.client, wallet("m1"), 1, b"second")
    chain.advance(1)
    m1, m2 = (wallet(name).keys.hotkey for name in ("m1", "m2"))
    now = await read_commitments(chain.client, 1, await chain.client.block())
    assert (now[m1].data, now[m2].data) == (b"second", b"text")
    then = await read_commitments(chain.client, 1, before)
    assert then[m1].data == b"\x00\xff first"
    assert then[m1].block < now[m1].block


async def test_what_cannot_be_published(chain: Any, wallet: Any) -> None:
    """More than a field holds, and by who is not registered."""
    with pytest.raises(ConfigurationError, match="at most 128 bytes; found 129"):
        await publish_commitment(chain.client, wallet("m1"), 1, b"x" * 129)
    with pytest.raises(ChainRefused, match="AccountNotAllowedCommit"):
        await publish_commitment(chain.client, wallet("nobody"), 1, b"x")


async def test_what_is_not_plain_bytes_is_left_out(chain: Any, wallet: Any) -> None:
    """Two fields are somebody else's format; nobody's reading fails by it."""
    fields = [[{"Raw1": b"a"}, {"Raw1": b"b"}]]
    call = calls.Commitments.set_commitment(netuid=1, info={"fields": fields})
    assert (await chain.client.submit_call(call, wallet("m1"), signer="hotkey")).success
    await publish_commitment(chain.client, wallet("m2"), 1, b"x" * 128)
    block = await chain.client.block()
    found = await read_commitments(chain.client, 1, block)
    assert found == {wallet("m2").keys.hotkey: Commitment(block, b"x" * 128)}


async def test_hashes_of_blocks(chain: Any) -> None:
    """Each block has its own; one that is to come has none."""
    head = chain.advance(5)
    assert await read_block_hash(chain.client, head) != await read_block_hash(chain.client, head - 1)
    assert (await read_block_hash(chain.client, head)).startswith("0x")
    with pytest.raises(ChainUnavailable, match="not there yet"):
        await read_block_hash(chain.client, head + 1)
