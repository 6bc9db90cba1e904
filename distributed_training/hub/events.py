"""What a hub tells telemetry, and the one place where a publication is announced."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from distributed_training.hub.hub import ModelTag, Publication
from template.clock import Clock
from template.errors import HubError
from template.telemetry import Event, Telemetry


@dataclass(frozen=True, kw_only=True)
class _OfPublication(Event):
    """`hub` is the URL of the hub."""

    hub: str
    run_id: str
    epoch: int
    state_hash: str


@dataclass(frozen=True, kw_only=True)
class Published(_OfPublication):
    """The tag is there. `new` is false if somebody had published the same state before; `bytes` counts all files."""

    new: bool
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PublishFailed(_OfPublication):
    """The tag is not there, or holds something else; `error` is the class of the error, `reason` its message."""

    error: str
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PublishRetried(Event):
    """One step of a publication failed for the `tried`th time and will be tried again after `delay` seconds."""

    hub: str
    epoch: int
    step: str
    tried: int
    delay: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReadRetried(Event):
    """One step of reading failed for the `tried`th time and will be tried again after `delay` seconds."""

    hub: str
    step: str
    tried: int
    delay: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class IndexNotWritten(Event):
    """The release of `epoch` is there, but the list for readers who may not list the hub does not name it yet."""

    hub: str
    epoch: int
    reason: str


async def announced(
    publication: Awaitable[Publication], *, hub: str, tag: ModelTag, telemetry: Telemetry, clock: Clock
) -> None:
    """Await a publication and say how it ended; the error goes on to the caller."""
    start = clock.monotonic()
    try:
        done = await publication
    except HubError as error:
        seconds = clock.monotonic() - start
        telemetry.emit(
            PublishFailed(
                hub=hub,
                run_id=tag.run_id,
                epoch=tag.epoch,
                state_hash=tag.state_hash,
                error=type(error).__name__,
                reason=str(error),
                seconds=seconds,
            )
        )
        raise
    seconds = clock.monotonic() - start
    telemetry.emit(
        Published(
            hub=hub,
            run_id=tag.run_id,
            epoch=tag.epoch,
            state_hash=tag.state_hash,
            new=done.new,
            bytes=done.release.size,
            seconds=seconds,
        )
    )
