"""The in-memory transport under the contract of all transports."""

from __future__ import annotations

import pytest

from distributed_training.averaging.memory import MemoryNetwork
from tests.averaging.stream_contract import Pair, StreamContract


class TestMemoryStreams(StreamContract):
    @pytest.fixture
    def pair(self) -> Pair:
        network = MemoryNetwork()
        return network.transport("a"), network.transport("b"), ()
