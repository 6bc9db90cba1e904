"""URLs of chains."""

from __future__ import annotations

from pathlib import Path

import bittensor
import pytest

from template.chain.connect import ChainConfig, LocalClient, RemoteClient, connect
from template.errors import ChainUnavailable, ConfigurationError


@pytest.mark.parametrize("url", ["", "mainnet", "http://x", "local://relative.db", "local://", "local:/x"])
def test_unknown_form_is_refused(url: str) -> None:
    """The message names every accepted form."""
    with pytest.raises(ConfigurationError, match=r"finney, test, ws://.*wss://.*local:///"):
        connect(url)


@pytest.mark.parametrize("url", ["finney", "test", "ws://127.0.0.1:9944", "wss://node.example:443"])
def test_remote_forms(url: str) -> None:
    """Networks and websocket URLs get the SDK's own client, not yet connected."""
    client = connect(url)
    assert isinstance(client, RemoteClient)
    assert client.endpoint.startswith(("ws://", "wss://"))


def test_missing_file_says_how_to_create_it(tmp_path: Path) -> None:
    """A chain file that is not there is not created silently."""
    with pytest.raises(ChainUnavailable, match=r"python -m template\.chain\.local create"):
        connect(f"local://{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


async def test_foreign_file_is_refused(tmp_path: Path) -> None:
    """A file that is no chain is named, not damaged."""
    path = tmp_path / "notes.txt"
    path.write_text("not a chain at all" * 500)
    with pytest.raises(ChainUnavailable, match=r"notes\.txt"):
        await connect(f"local://{path}").connect()
    assert path.read_text().startswith("not a chain")


async def test_local_client_needs_no_home_and_no_cache(
    chain_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symbols come from the chain file; the SDK's cache is neither read nor written."""
    cache = tmp_path / "symbols.json"
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(cache))
    async with connect(f"local://{chain_path}") as client:
        assert isinstance(client, LocalClient)
        assert client.token_symbols == {0: "τ", 1: "sn1"}
    assert not cache.exists()


async def test_use_after_close_raises(chain_path: Path) -> None:
    """A closed client does not answer."""
    async with connect(f"local://{chain_path}") as client:
        assert await client.block() == 1
    with pytest.raises(bittensor.result.ConnectionNotReady, match="not open"):
        await client.block()


async def test_unreachable_node_is_chain_unavailable() -> None:
    """A refused connection is our error, not the transport's."""
    with pytest.raises(ChainUnavailable, match=r"connecting to ws://127\.0\.0\.1:9"):
        await connect("ws://127.0.0.1:9").connect()


@pytest.mark.parametrize("fields", [{"network": "nowhere"}, {"netuid": 0}, {"netuid": 4096}])
def test_config_is_checked(fields: dict[str, object]) -> None:
    """A wrong network or netuid is refused when the configuration is made."""
    with pytest.raises(ConfigurationError):
        ChainConfig(**fields)  # type: ignore[arg-type]
