"""Who a libp2p peer says it is, over a stream that only the holder of its identity can answer.

A binding shows that a hotkey names a peer id, not that it holds it. Where two hotkeys name the same one, this tells
whose it is: else anybody could keep another miner out of every group by naming its peer id.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from distributed_training.averaging.frames import read_message, write_message
from distributed_training.averaging.streams import Stream, Transport
from distributed_training.protocol import PeerBinding
from template.errors import AveragingError

PROTOCOL = "dt-introduction/1"
MAX_FRAME = 8192  # bytes: 16 addresses and what else a binding holds
SECONDS = 5.0  # for one introduction, on either side
AT_ONCE = 32  # streams served; the answer is the same for everybody, so a stranger may ask


class Introductions:
    """Answers with this neuron's own binding. Use as an async context manager."""

    def __init__(self, transport: Transport, binding: PeerBinding) -> None:
        self._transport = transport
        self._binding = binding
        self._running = 0

    async def __aenter__(self) -> Self:
        await self._transport.serve(PROTOCOL, self._serve)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.unserve(PROTOCOL)

    async def _serve(self, stream: Stream) -> None:
        if self._running >= AT_ONCE:
            return
        self._running += 1
        try:
            async with asyncio.timeout(SECONDS):
                await write_message(stream, self._binding)
                await stream.read(1)  # the asking side closes first
        except (AveragingError, TimeoutError):
            return  # it left; whether it learned what it wanted is its own affair
        finally:
            self._running -= 1


async def introduced(transport: Transport, peer_id: str, addresses: tuple[str, ...]) -> PeerBinding:
    """What the peer itself says; its signature is for the caller to check.

    Raises:
        AveragingError: it cannot be reached there, or does not say within SECONDS.
    """
    stream: Stream | None = None
    try:
        async with asyncio.timeout(SECONDS):
            stream = await transport.open(peer_id, addresses, PROTOCOL)
            return await read_message(stream, PeerBinding, MAX_FRAME)
    except TimeoutError:
        raise AveragingError(f"{peer_id} did not introduce itself in {SECONDS:g} s") from None
    finally:
        if stream is not None:
            stream.abort()
