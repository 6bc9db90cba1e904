"""Direct streams: the contract of all transports, who is refused, limits, reuse, and blocked calls that end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from distributed_training.averaging.direct import DirectConfig, DirectTransport
from tests.averaging.direct_pairs import address_of, direct_transports, host_key
from tests.averaging.stream_contract import Pair, StreamContract

CONFIG = DirectConfig(host="127.0.0.1")


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[DirectTransport]]:
    async with direct_transports([host_key(number, tmp_path) for number in range(2)], CONFIG) as transports:
        yield transports


class TestDirectStreams(StreamContract):
    @pytest.fixture
    def pair(self, two: list[DirectTransport]) -> Pair:
        return two[0], two[1], address_of(two[1])
