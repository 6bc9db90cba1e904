"""What an extrinsic's arguments may be: the checks that SCALE encoding makes on a real chain.

A handler's annotations name the types below; `encode` turns an argument into plain JSON or refuses it as the codec
would, before anything is signed.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from bittensor import ChainError
from bittensor.sp_core import ss58_decode


class Unsigned:
    """An integer of so many bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(self, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= int(value) < 1 << self.bits:
            raise ValueError(f"not a u{self.bits}: {value!r}")
        return int(value)


class Signed:
    """An integer of so many bits, one of them for the sign."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __call__(self, value: Any) -> int:
        limit = 1 << (self.bits - 1)
        if isinstance(value, bool) or not hasattr(value, "__index__") or not -limit <= int(value) < limit:
            raise ValueError(f"not an i{self.bits}: {value!r}")
        return int(value)


def account(value: Any) -> str:
    """An ss58 address."""
    if not isinstance(value, str):
        raise ValueError(f"not an ss58 address: {value!r}")
    ss58_decode(value)
    return value


def blob(value: Any) -> str:
    """Bytes, as 0x-hex."""
    if isinstance(value, bytes | bytearray):
        return "0x" + bytes(value).hex()
    if isinstance(value, list | tuple):
        return "0x" + bytes(value).hex()
    if isinstance(value, str) and value.startswith("0x"):
        return "0x" + bytes.fromhex(value[2:]).hex()
    raise ValueError("not bytes")


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"not a bool: {value!r}")
    return value


U8 = Annotated[int, Unsigned(8)]
U16 = Annotated[int, Unsigned(16)]
U32 = Annotated[int, Unsigned(32)]
U64 = Annotated[int, Unsigned(64)]
U128 = Annotated[int, Unsigned(128)]
I16 = Annotated[int, Signed(16)]
Account = Annotated[str, account]
Bytes = Annotated[str, blob]
Flag = Annotated[bool, boolean]


def types_of(handler: Callable[..., None]) -> dict[str, Any]:
    """The arguments of a handler: its keyword-only parameters and their types."""
    hints = typing.get_type_hints(handler, include_extras=True)
    return {p.name: hints[p.name] for p in inspect.signature(handler).parameters.values() if p.kind is p.KEYWORD_ONLY}


def encode_arguments(where: str, kinds: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The plain form of a call's arguments.

    Raises:
        ChainError: an argument is missing, unknown or not of its type.
    """
    if set(kinds) != set(arguments):
        raise ChainError(f"cannot encode {where}: it takes {', '.join(kinds)}; given {', '.join(arguments)}")
    return {name: _encode(f"{where}.{name}", kind, arguments[name]) for name, kind in kinds.items()}


def _encode(where: str, hint: Any, value: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        try:
            return parts[1](value)
        except (ValueError, TypeError) as error:
            raise ChainError(f"cannot encode {where}: {error}") from error
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _encode(where, parts[0], value)
    if origin is list and isinstance(value, list | tuple):
        return [_encode(where, parts[0], element) for element in value]
    raise ChainError(f"cannot encode {where}: {value!r} is not a {hint}")
