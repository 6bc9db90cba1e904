"""Fixtures of the wire's tests; what they are made of is in `wires.py`."""

from __future__ import annotations

import pytest

from template.telemetry import MemorySink
from tests.template.transport.wires import Handlers, Memory, Sockets, Wire


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture(params=[Sockets, Memory], ids=["sockets", "memory"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param()
