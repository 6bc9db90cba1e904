"""The chain as a neuron goes along with it: the last block seen, and a metagraph that is read every few blocks."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from dataclasses import dataclass

from bittensor import Client

from template.chain.faults import translated
from template.chain.metagraph import Metagraph, read_metagraph
from template.clock import Clock
from template.errors import ChainFault, ConfigurationError
from template.telemetry import Event, Telemetry

SECOND_LOOK_SECONDS = 5.0  # what somebody waits at most for a newer view, before he is refused by the old one


@dataclass(frozen=True, kw_only=True)
class ChainSilent(Event):
    """The chain could not be read; the last snapshot stays in use and it is asked again after `retry_seconds`."""

    reason: str
    retry_seconds: float


@dataclass(frozen=True, kw_only=True)
class ChainWatchConfig:
    """`refresh_blocks`: blocks between two reads of the metagraph; `poll_seconds`: between two looks at the head.

    A chain that does not answer within `answer_seconds` counts as silent; it is asked again after pauses that double
    up to `longest_retry_seconds`.
    """

    refresh_blocks: int = 5
    poll_seconds: float = 1.0
    longest_retry_seconds: float = 60.0
    answer_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ConfigurationError(f"--chain.{field.name} must be above 0")


class ChainWatch:
    """Holds the latest view. Answers as the axon's directory, too: a validator has a permit and `stake_floor` stake."""

    def __init__(
        self,
        client: Client,
        first: Metagraph,
        *,
        stake_floor: float,
        config: ChainWatchConfig,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._client = client
        self._stake_floor = stake_floor
        self._config = config
        self._telemetry = telemetry
        self._clock = clock
        self._looking = asyncio.Lock()
        self._looked_again = -math.inf
        self.metagraph = first
        self.block = first.block

    def uid_of(self, hotkey: str) -> int | None:
        return self.metagraph.uid_of(hotkey)

    def is_validator(self, uid: int) -> bool:
        return self.metagraph.is_validator(uid, self._stake_floor)

    async def run(self) -> None:
        """Follow the chain until cancelled. A chain that is silent is told in telemetry, and asked again."""
        pause = self._config.poll_seconds
        while True:
            await self._clock.sleep(pause)
            try:
                async with self._looking:
                    await self._look(self._config.refresh_blocks)
                pause = self._config.poll_seconds
            except ChainFault as error:
                pause = min(2 * pause, self._config.longest_retry_seconds)
                self._telemetry.emit(ChainSilent(reason=str(error), retry_seconds=pause))

    async def look_again(self) -> bool:
        """Whether there is a newer metagraph now than a moment ago: it is read if it is a block old, whoever asks, at
        most once in `poll_seconds`. A chain that is silent is told; its last snapshot stays in use.
        """
        before = self.metagraph
        try:
            with translated("looking at the chain again"):
                async with asyncio.timeout(SECOND_LOOK_SECONDS), self._looking:
                    if self.metagraph is before and self._may_look_again():
                        await self._look(1)
        except ChainFault as error:
            self._telemetry.emit(ChainSilent(reason=str(error), retry_seconds=self._config.poll_seconds))
        return self.metagraph is not before

    def _may_look_again(self) -> bool:
        now = self._clock.monotonic()
        if now - self._looked_again < self._config.poll_seconds:
            return False
        self._looked_again = now
        return True

    async def _look(self, refresh_blocks: int) -> None:
        with translated("reading the head of the chain"):
            async with asyncio.timeout(self._config.answer_seconds):
                block = await self._client.block()
        if block - self.metagraph.block >= refresh_blocks:
            netuid, mechid = self.metagraph.netuid, self.metagraph.mechid
            with translated(f"reading the metagraph of subnet {netuid}"):
                async with asyncio.timeout(self._config.answer_seconds):
                    self.metagraph = await read_metagraph(self._client, netuid, mechid)
        self.block = max(block, self.metagraph.block)
