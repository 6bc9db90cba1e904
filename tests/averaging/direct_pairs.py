"""Direct transports for the tests: identities made once, transports that trust each other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hivemind.p2p import P2P

from distributed_training.averaging.direct import DirectConfig, DirectTransport
from distributed_training.averaging.identity import HostKey

_KEYS: dict[int, HostKey] = {}


def host_key(number: int, folder: Path) -> HostKey:
    """An RSA key as hivemind makes it, the same for each call in this process: making one takes long."""
    if number not in _KEYS:
        path = folder / f"identity-{number}"
        P2P.generate_identity(str(path))
        _KEYS[number] = HostKey.load(path)
    return _KEYS[number]


def address_of(transport: DirectTransport) -> tuple[str, ...]:
    return (f"/ip4/127.0.0.1/tcp/{transport.port}",)


@contextlib.asynccontextmanager
async def direct_transports(keys: Sequence[HostKey], config: DirectConfig) -> AsyncIterator[list[DirectTransport]]:
    """A running transport for each key; all trust each other."""
    transports = [DirectTransport(key, config) for key in keys]
    try:
        for one in transports:
            await one.start()
            for other in transports:
                if other is not one:
                    one.trust(other.peer_id, other.certificate)
        yield transports
    finally:
        for transport in transports:
            await transport.close()
