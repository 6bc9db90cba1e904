"""What a call is and what its handler works with. Handlers raise the pallet's error names and never half-apply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from template.chain.local.state import State


class DispatchError(Exception):
    """The pallet refused; `name` is the error's name in the runtime's metadata."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def require(condition: object, name: str) -> None:
    """Refuse with the error `name` unless the condition holds."""
    if not condition:
        raise DispatchError(name)


@dataclass(frozen=True)
class Call:
    """A composed call; has the SDK's `data` and `call_hash`, but canonical JSON in place of SCALE."""

    module: str
    function: str
    params: Mapping[str, Any]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.module, self.function, self.params))

    @property
    def data(self) -> bytes:
        return json.dumps([self.module, self.function, self.params], sort_keys=True, separators=(",", ":")).encode()

    @property
    def call_hash(self) -> bytes:
        return hashlib.blake2b(self.data, digest_size=32).digest()

    @classmethod
    def from_data(cls, data: str) -> Call:
        return cls(*json.loads(data))


@dataclass(frozen=True)
class Execution:
    """One call being executed. `origin` is the signing account, None for root; `extrinsic` its place in the block."""

    state: State
    origin: str | None
    extrinsic: int
    dispatch: Callable[[Execution, Call], None]

    @property
    def signer(self) -> str:
        """The signing account; calls that need one refuse root."""
        if self.origin is None:
            raise DispatchError("BadOrigin")
        return self.origin

    def emit(self, module: str, name: str, attributes: Any) -> None:
        self.state.emit(module, name, attributes, self.extrinsic)


Handlers = Mapping[tuple[str, str], Callable[..., None]]  # (Execution, *, arguments by name)
