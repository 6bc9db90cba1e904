"""Making chain files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from template.chain.connect import connect
from template.chain.local.genesis import Registration, create_chain, create_file
from template.chain.metagraph import read_metagraph
from template.errors import ChainRefused, ConfigurationError


async def test_ready_at_once(tmp_path: Path, wallet: Any) -> None:
    """On the wall clock too, everything is visible when the function returns."""
    config = create_chain(
        tmp_path / "c.db",
        owner=wallet("owner").keys,
        neurons=[Registration(wallet("v").keys, 100.0)],
        endow={wallet("m").keys.coldkey: 7.0},
        block_seconds=12.0,
        tempo=30,
        split=[6553, 58982],
    )
    async with connect(config.network) as client:
        graph = await read_metagraph(client, config.netuid)
        assert (graph.block, graph.tempo, len(graph)) == (1, 30, 2)
        assert (await client.balances.get(wallet("m").keys.coldkey)).tao == 7.0
        assert await client.read("mechanism_count", netuid=1) == 2
        assert await client.read("mechanism_emission_split", netuid=1) == [6553, 58982]


def test_existing_file_is_kept(tmp_path: Path) -> None:
    """A chain is never overwritten."""
    path = tmp_path / "c.db"
    create_file(path, block_seconds=1.0, manual=True)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="exists"):
        create_file(path, block_seconds=1.0, manual=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "error"), [({"colour": 1}, ConfigurationError), ({"max_allowed_uids": 256}, ChainRefused)]
)
def test_a_failed_creation_leaves_nothing(
    tmp_path: Path, wallet: Any, settings: dict[str, Any], error: type[Exception]
) -> None:
    """Neither half a chain nor a draft stays behind. 256 uids do not fit two mechanisms."""
    with pytest.raises(error):
        create_chain(tmp_path / "c.db", owner=wallet("owner").keys, hyperparameters=settings)
    assert list(tmp_path.iterdir()) == []


def test_block_needs_a_length(tmp_path: Path) -> None:
    """Zero seconds a block is refused."""
    with pytest.raises(ConfigurationError, match="block_seconds"):
        create_file(tmp_path / "c.db", block_seconds=0.0, manual=False)
