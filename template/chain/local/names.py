"""The pallets' error names and what they say, from the SDK's generated tables."""

from __future__ import annotations

from bittensor._generated.errors import ERRORS
from bittensor.error_map import DISPATCH_ERRORS

MESSAGES: dict[str, str] = {info.name: info.docs or info.name for info in ERRORS.values()} | {
    name: text for name, (_, text) in DISPATCH_ERRORS.items()
}


def message_of(name: str) -> str:
    """The text a node would send with the error.

    Raises:
        KeyError: no pallet has such an error; a handler's mistake.
    """
    return MESSAGES[name]
