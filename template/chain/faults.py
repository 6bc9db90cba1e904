"""The SDK's exceptions as this project's. Everything that calls the SDK does so inside `translated`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bittensor import ChainError, ErrorCode, ExtrinsicResult, PolicyError
from bittensor._transport.errors import StorageFunctionNotFound
from bittensor.result import BittensorError, ConnectionNotReady, RpcConnectionError

from template.errors import ChainFault, ChainRefused, ChainUnavailable, NotRegistered


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the SDK raises inside into ChainFault's subclasses; `doing` begins the message."""
    try:
        yield
    except ChainError as error:
        raise fault_of(doing, error) from error
    except PolicyError as error:
        raise ChainRefused(f"{doing}: {error}", code=ErrorCode.POLICY_VIOLATION.value) from error
    except (RpcConnectionError, ConnectionNotReady, OSError, TimeoutError) as error:
        raise ChainUnavailable(f"{doing}: {error}") from error
    except StorageFunctionNotFound as error:
        raise ChainUnavailable(f"{doing}: the chain has no such storage, is it a subtensor? ({error})") from error
    except BittensorError as error:
        raise ChainRefused(f"{doing}: {error}", code=ErrorCode.INVALID_ARGUMENT.value) from error


def fault_of(doing: str, error: ChainError) -> ChainFault:
    """The ChainError as one of ours."""
    text = f"{doing}: {error.message}" + (f" ({error.name})" if error.name else "")
    if error.code is ErrorCode.NOT_REGISTERED:
        return NotRegistered(text)
    return ChainRefused(text, code=error.code.value, name=error.name)


def check(doing: str, result: ExtrinsicResult) -> None:
    """Raise for a write that the chain refused."""
    if result.success:
        return
    raise fault_of(doing, result.error or ChainError(result.message))
