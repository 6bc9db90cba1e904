"""Key files."""

from __future__ import annotations

from pathlib import Path

import pytest

from template.chain.wallet import create_wallet, open_wallet
from template.errors import WalletError


def test_created_wallet_opens(tmp_path: Path) -> None:
    """What was created is found again under the same name."""
    made = create_wallet("alice", "one", str(tmp_path))
    found = open_wallet("alice", "one", str(tmp_path))
    assert found.hotkey.ss58_address == made.hotkey.ss58_address
    assert found.coldkeypub.ss58_address == made.coldkey.ss58_address


def test_second_hotkey_keeps_the_cold_key(tmp_path: Path) -> None:
    """A wallet can get more hotkeys."""
    first = create_wallet("alice", "one", str(tmp_path))
    second = create_wallet("alice", "two", str(tmp_path))
    assert second.coldkeypub.ss58_address == first.coldkeypub.ss58_address
    assert second.hotkey.ss58_address != first.hotkey.ss58_address


def test_existing_hotkey_is_never_overwritten(tmp_path: Path) -> None:
    """Creating the same hotkey again is an error."""
    before = create_wallet("alice", "one", str(tmp_path)).hotkey.ss58_address
    with pytest.raises(WalletError, match="already"):
        create_wallet("alice", "one", str(tmp_path))
    assert open_wallet("alice", "one", str(tmp_path)).hotkey.ss58_address == before


def test_missing_cold_key_names_file_and_command(tmp_path: Path) -> None:
    """The message is enough to mend it."""
    with pytest.raises(WalletError, match=r"bob/coldkeypub\.txt.*btcli wallet new-coldkey --wallet bob"):
        open_wallet("bob", "one", str(tmp_path))


def test_missing_hotkey_names_file_and_command(tmp_path: Path) -> None:
    """The message is enough to mend it."""
    create_wallet("bob", "one", str(tmp_path))
    with pytest.raises(WalletError, match=r"bob/hotkeys/two.*btcli wallet new-hotkey .*--wallet-hotkey two"):
        open_wallet("bob", "two", str(tmp_path))


def test_damaged_key_file(tmp_path: Path) -> None:
    """A hotkey that cannot be read is found at opening, not at the first signature."""
    create_wallet("bob", "one", str(tmp_path))
    (tmp_path / "bob" / "hotkeys" / "one").write_text("{}")
    with pytest.raises(WalletError, match="cannot be read"):
        open_wallet("bob", "one", str(tmp_path))
