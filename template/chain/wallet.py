"""Key files in the ecosystem's layout: <path>/<name>/coldkeypub.txt and <path>/<name>/hotkeys/<hotkey>."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bittensor import Wallet
from bittensor.keyfiles import KeyfileError, WrongPasswordError

from template.errors import WalletError

DEFAULT_PATH = "~/.bittensor/wallets"


@dataclass(frozen=True, kw_only=True)
class WalletConfig:
    """Which keys a neuron runs with. The cold key itself is never needed to run, only its public file."""

    name: str = "default"
    hotkey: str = "default"
    path: str = DEFAULT_PATH


def open_wallet(name: str, hotkey: str, path: str = DEFAULT_PATH) -> Wallet:
    """The wallet with its hotkey read and its cold key's public part checked.

    Raises:
        WalletError: a file is missing (the message names it and the command that makes it) or cannot be read.
    """
    wallet = Wallet(name=name, hotkey=hotkey, path=path)
    where = f"--wallet {name} --wallet-path {path}"
    _require_file(wallet.coldkeypub_file.path, "cold key", f"btcli wallet new-coldkey {where}")
    _require_file(wallet.hotkey_file.path, "hotkey", f"btcli wallet new-hotkey {where} --wallet-hotkey {hotkey}")
    try:
        wallet.hotkey  # noqa: B018  read now: a neuron must not fail at its first signature
        wallet.coldkeypub  # noqa: B018
    except (KeyfileError, WrongPasswordError, OSError, ValueError) as error:
        raise WalletError(f"the keys of wallet '{name}' under {path} cannot be read: {error}") from error
    return wallet


def create_wallet(name: str, hotkey: str, path: str) -> Wallet:
    """New keys, not encrypted: for an embedded chain, never for money.

    Raises:
        WalletError: a key file of that name exists, or the folder cannot be written.
    """
    wallet = Wallet(name=name, hotkey=hotkey, path=path)
    if Path(wallet.hotkey_file.path).exists():  # the SDK would ask on a terminal whether to overwrite it
        raise WalletError(f"there is a hotkey at {wallet.hotkey_file.path} already")
    try:
        if not Path(wallet.coldkey_file.path).exists():
            wallet.create_new_coldkey(use_password=False, suppress=True)
        wallet.create_new_hotkey(use_password=False, suppress=True)
    except (KeyfileError, OSError) as error:
        raise WalletError(f"cannot create wallet '{name}/{hotkey}' under {path}: {error}") from error
    return wallet


def _require_file(path: str | Path, what: str, command: str) -> None:
    if not Path(path).is_file():
        raise WalletError(f"no {what} at {path}; create it with: {command}")
