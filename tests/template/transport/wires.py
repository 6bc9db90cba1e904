"""What the tests share: keys, two synapses, an axon, and the two wires that the conformance tests run over."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import httpx
from bittensor.keyfiles import Keypair
from pydantic import Field

from template.clock import Clock
from template.telemetry import MemorySink, Telemetry
from template.transport.axon import Axon, AxonConfig
from template.transport.dendrite import Dendrite, DendriteConfig, Target
from template.transport.memory import MemoryNetwork
from template.transport.policy import Caller
from template.transport.synapse import Request, Response

RUN = "nano-0123abcd"
ALICE, BOB, CHARLIE, EVE = (Keypair.create_from_uri(f"//{name}") for name in ("Alice", "Bob", "Charlie", "Eve"))


class Pong(Response):
    """The answer: the number, and who is thought to have asked."""

    number: int
    caller: int
    padding: str = ""


class Ping(Request):
    """Open to every registered hotkey."""

    Answer: ClassVar[type[Response]] = Pong
    number: Annotated[int, Field(ge=0, le=1000)]


class Secret(Request):
    """For validators only."""

    Answer: ClassVar[type[Response]] = Pong


@dataclass
class Register:
    """A directory: hotkeys by uid, and which uids are validators. `newer` is what a second look at the chain shows."""

    hotkeys: tuple[str, ...] = (ALICE.ss58_address, BOB.ss58_address, CHARLIE.ss58_address)
    validators: frozenset[int] = frozenset({0})
    newer: Register | None = None
    looks: int = 0

    def uid_of(self, hotkey: str) -> int | None:
        return self.hotkeys.index(hotkey) if hotkey in self.hotkeys else None

    def is_validator(self, uid: int) -> bool:
        return uid in self.validators

    async def look_again(self) -> bool:
        self.looks += 1
        if self.newer is None:
            return False
        self.hotkeys, self.validators, self.newer = self.newer.hotkeys, self.newer.validators, None
        return True


class Handlers:
    """Counts what gets through the gates."""

    def __init__(self) -> None:
        self.calls = 0
        self.padding = 0
        self.raises: Exception | None = None

    async def ping(self, message: Ping, caller: Caller) -> Pong:
        self.calls += 1
        if self.raises is not None:
            raise self.raises
        return Pong(number=message.number, caller=caller.uid, padding="x" * self.padding)

    async def secret(self, message: Secret, caller: Caller) -> Pong:
        self.calls += 1
        return Pong(number=0, caller=caller.uid)


def axon_of(
    handlers: Handlers,
    sink: MemorySink | None = None,
    clock: Clock | None = None,
    key: Keypair = BOB,
    run_id: str = RUN,
    directory: Register | None = None,
    **settings: Any,
) -> Axon:
    """Bob's axon on a free port of this machine, with both synapses; settings of `AxonConfig` as given."""
    config = AxonConfig(**{"ip": "127.0.0.1", "port": 0, **settings})
    axon = Axon(key, run_id, directory or Register(), config, Telemetry([sink] if sink else []), clock)
    axon.attach(Ping, handlers.ping, validators_only=False)
    axon.attach(Secret, handlers.secret, validators_only=True)
    return axon


class Sockets:
    """TCP on 127.0.0.1."""

    @contextlib.asynccontextmanager
    async def serving(self, axon: Axon, uid: int = 1) -> AsyncIterator[Target]:
        async with axon:
            yield Target(uid, axon.hotkey, "127.0.0.1", axon.port)

    def dendrite(
        self,
        key: Keypair = ALICE,
        config: DendriteConfig | None = None,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
    ) -> Dendrite:
        return Dendrite(key, config, telemetry, clock)

    def raw(self, target: Target) -> httpx.AsyncClient:
        """A client that signs nothing."""
        return httpx.AsyncClient(base_url=f"http://{target.host}:{target.port}", trust_env=False)


class Memory:
    """`MemoryNetwork`."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()

    @contextlib.asynccontextmanager
    async def serving(self, axon: Axon, uid: int = 1) -> AsyncIterator[Target]:
        async with self.network.serving(axon):
            yield self.network.target(uid, axon.hotkey)

    def dendrite(
        self,
        key: Keypair = ALICE,
        config: DendriteConfig | None = None,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
    ) -> Dendrite:
        return Dendrite(key, config, telemetry, clock, self.network.transport())

    def raw(self, target: Target) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://{target.host}:{target.port}", transport=self.network.transport(), trust_env=False
        )


Wire = Sockets | Memory
