"""The chain file from the command line.

    python -m template.chain.local create chain.db --owner owner/default --block-seconds 1 --tempo 20
    python -m template.chain.local fund chain.db alice 100
    python -m template.chain.local register chain.db alice/default --stake 50
    python -m template.chain.local show chain.db

An account is an ss58 address or a wallet name; a neuron is NAME/HOTKEY of a wallet under --wallet.path. Whoever can
write the file is its root: nothing here needs a signature.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from template.chain.local import genesis, operator, table
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.wallet import DEFAULT_PATH, open_wallet
from template.errors import ConfigurationError, SubnetError

PLAIN_WIDTH = 160  # where output goes to a file


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run one command; 0, or 1 with one line on standard error."""
    options = _parser().parse_args(arguments)
    out = console or (Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH))
    try:
        options.run(options, out)
    except (SubnetError, sqlite3.Error) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m template.chain.local", description="A chain in one file.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = _command(commands, "create", _create, "make a chain file, with a subnet if --owner is given")
    create.add_argument("--owner", metavar="NAME/HOTKEY", help="the wallet that owns subnet 1")
    create.add_argument("--block-seconds", type=float, default=12.0)
    create.add_argument("--tempo", type=int, default=20, help="blocks an epoch")
    create.add_argument("--mechanisms", type=int, default=2, choices=(1, 2))
    create.add_argument("--manual", action="store_true", help="blocks pass by `advance` and by extrinsics only")
    fund = _command(commands, "fund", _fund, "give TAO to an account")
    fund.add_argument("account", help="ss58 address or wallet name")
    fund.add_argument("tao", type=float)
    for name, run, text in (
        ("register", _register, "register a hotkey at its cold key's cost"),
        ("stake", _stake, "stake a cold key's TAO on its hotkey"),
    ):
        command = _command(commands, name, run, text)
        command.add_argument("neuron", metavar="NAME/HOTKEY")
        command.add_argument("--netuid", type=int, default=genesis.NETUID)
        if run is _stake:
            command.add_argument("tao", type=float)
    advance = _command(commands, "advance", _advance, "move a manual clock")
    advance.add_argument("blocks", type=int)
    setting = _command(commands, "set", _set, "set a hyperparameter")
    setting.add_argument("name")
    setting.add_argument("value", help="an integer, true, false, or integers joined by commas")
    setting.add_argument("--netuid", type=int, default=genesis.NETUID)
    show = _command(commands, "show", _show, "print a subnet, a line per uid")
    show.add_argument("--netuid", type=int, default=genesis.NETUID)
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("path", type=Path, help="the chain file")
    command.add_argument("--wallet.path", dest="wallets", default=DEFAULT_PATH, metavar="FOLDER")
    command.set_defaults(run=run)
    return command


def _create(options: argparse.Namespace, console: Console) -> None:
    timing = {"block_seconds": options.block_seconds, "manual": options.manual}
    if options.owner is None:
        genesis.create_file(options.path, **timing)
        console.print(f"created {options.path}", soft_wrap=True)
        return
    owner = _keys(options.owner, options.wallets)
    made = genesis.create_chain(options.path, owner=owner, tempo=options.tempo, mechanisms=options.mechanisms, **timing)
    console.print(f"created {made.network} with subnet {made.netuid}", soft_wrap=True)


def _fund(options: argparse.Namespace, console: Console) -> None:
    who = _address(options.account, options.wallets)
    with Ledger(options.path) as chain:
        operator.apply(chain, lambda state: operator.fund(state, who, options.tao))
    console.print(f"{who} got {options.tao} TAO", soft_wrap=True)


def _register(options: argparse.Namespace, console: Console) -> None:
    keys = _keys(options.neuron, options.wallets)
    with Ledger(options.path) as chain:
        operator.apply(chain, lambda state: operator.register(state, options.netuid, keys))
    console.print(f"registered {keys.hotkey} on subnet {options.netuid}", soft_wrap=True)


def _stake(options: argparse.Namespace, console: Console) -> None:
    keys = _keys(options.neuron, options.wallets)
    with Ledger(options.path) as chain:
        operator.apply(chain, lambda state: operator.add_stake(state, options.netuid, keys, options.tao))
    console.print(f"staked {options.tao} TAO on {keys.hotkey}", soft_wrap=True)


def _advance(options: argparse.Namespace, console: Console) -> None:
    with Ledger(options.path) as chain:
        console.print(f"block {operator.advance(chain, options.blocks)}")


def _set(options: argparse.Namespace, console: Console) -> None:
    value = _value(options.value)
    with Ledger(options.path) as chain:
        operator.apply(chain, lambda state: operator.set_hyperparameter(state, options.netuid, options.name, value))
    console.print(f"{options.name} = {value}")


def _show(options: argparse.Namespace, console: Console) -> None:
    with Ledger(options.path) as chain:
        console.print(table.subnet(chain, options.netuid))


def _keys(neuron: str, wallets: str) -> Keys:
    name, _, hotkey = neuron.partition("/")
    wallet = open_wallet(name, hotkey or "default", wallets)
    return Keys(wallet.coldkeypub.ss58_address, wallet.hotkey.ss58_address)


def _address(account: str, wallets: str) -> str:
    return account if account.startswith("5") and len(account) == 48 else _keys(account, wallets).coldkey


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(f"'{text}' is not an integer, true, false or integers joined by commas") from None
    return numbers if "," in text else numbers[0]


if __name__ == "__main__":
    sys.exit(main())
