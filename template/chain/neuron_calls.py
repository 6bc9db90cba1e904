"""What a neuron does on the chain besides weights: register, publish its address, stake. Each is safe to repeat."""

from __future__ import annotations

import ipaddress

from bittensor import AddStake, BurnedRegister, Client, ServeAxon, Wallet

from template.chain.faults import check, translated
from template.chain.metagraph import AxonInfo, axon_of
from template.errors import ConfigurationError, NotRegistered


async def find_uid(client: Client, netuid: int, hotkey: str) -> int | None:
    """The hotkey's uid; None if it is not registered.

    Raises:
        ChainUnavailable: no answer.
    """
    with translated(f"looking up {hotkey} on subnet {netuid}"):
        uid = await client.query(("SubtensorModule", "Uids"), [netuid, hotkey])
    return None if uid is None else int(uid)


async def uid_of(client: Client, netuid: int, hotkey: str) -> int:
    """The hotkey's uid.

    Raises:
        NotRegistered: it has none.
        ChainUnavailable: no answer.
    """
    uid = await find_uid(client, netuid, hotkey)
    if uid is None:
        raise NotRegistered(f"hotkey {hotkey} is not registered on subnet {netuid}")
    return uid


async def register(client: Client, wallet: Wallet, netuid: int) -> int:
    """Register the wallet's hotkey at its cold key's cost, unless it is; returns the uid.

    Raises:
        ChainRefused: no money, registration closed, no place.
        ChainUnavailable: no answer.
    """
    hotkey = wallet.hotkey.ss58_address
    uid = await find_uid(client, netuid, hotkey)
    if uid is not None:
        return uid
    doing = f"registering {hotkey} on subnet {netuid}"
    with translated(doing):
        check(doing, await client.execute(BurnedRegister(netuid=netuid), wallet))
    return await uid_of(client, netuid, hotkey)


async def serve_axon(client: Client, wallet: Wallet, netuid: int, ip: str, port: int) -> bool:
    """Publish where the neuron serves; False if the chain has just that already.

    The chain refuses 127.0.0.1; on one machine use 127.0.0.2.

    Raises:
        ConfigurationError: not an IP address or not a port.
        NotRegistered, ChainRefused (`rate_limited`, `invalid_argument`), ChainUnavailable.
    """
    wanted = _axon(ip, port)
    hotkey = wallet.hotkey.ss58_address
    await uid_of(client, netuid, hotkey)
    doing = f"serving {ip}:{port} on subnet {netuid}"
    with translated(doing):
        record = await client.query(("SubtensorModule", "Axons"), [netuid, hotkey])
        if record is not None and axon_of(record) == wanted:
            return False
        check(doing, await client.execute(ServeAxon(netuid=netuid, ip=wanted.ip, port=port), wallet))
    return True


async def add_stake(client: Client, wallet: Wallet, netuid: int, tao: float) -> None:
    """Stake the cold key's TAO on its hotkey; not repeatable without staking again.

    Raises:
        NotRegistered, ChainRefused (`insufficient_balance`, `insufficient_liquidity`), ChainUnavailable.
    """
    doing = f"staking {tao} TAO on subnet {netuid}"
    intent = AddStake(hotkey_ss58=wallet.hotkey.ss58_address, netuid=netuid, amount_tao=tao)
    with translated(doing):
        check(doing, await client.execute(intent, wallet))


def _axon(ip: str, port: int) -> AxonInfo:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError as error:
        raise ConfigurationError(f"'{ip}' is not an IP address") from error
    if not 0 < port < 65536:
        raise ConfigurationError(f"{port} is not a port")
    return AxonInfo(str(address), port)
