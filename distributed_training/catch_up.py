"""Getting back in step: the state that most of the validators' stake stands at, from the nearest that has it.

That is this neuron's own checkpoint, then peers, several at once, then the hub. Every source is checked against the
expected state hash; a wrong, cut or stale one is told and the next one is tried. What is received lies on disk until
it is known to be right; the old state stays in use until then, so that there are two in memory for a moment and never
three.
"""

from __future__ import annotations

import asyncio
import functools
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distributed_training import schedule
from distributed_training.averaging.state_download import DownloadConfig, Source, Wanted, download_state
from distributed_training.averaging.state_transfer import in_thread
from distributed_training.averaging.streams import Transport
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import CatchUpFailed, CaughtUp, OutOfStep
from distributed_training.hub.hub import Hub, Release
from distributed_training.keeper import Keeper
from distributed_training.model.chunks import Chunks
from distributed_training.model.files import read_manifest, read_state
from distributed_training.peers import KnownPeers
from distributed_training.protocol import PeerBinding
from distributed_training.schedule import View
from template.clock import Clock
from template.errors import AveragingError, CorruptState, HubError, StateError, StateMismatch
from template.telemetry import Telemetry

INCOMING = "incoming-"  # prefix of the folders that states are received in


@dataclass(frozen=True, kw_only=True)
class CatchUpConfig:
    """`patience` is how long a neuron that is not behind lets the majority differ before it gives its state up, and how
    long one that has just started waits for the validators to say where they stand.

    When no source had the right state, all are tried again after `retry_seconds`. A release on the hub may have
    `extra_bytes` of other files beside the state.
    """

    patience: float = 10.0
    retry_seconds: float = 10.0
    download: DownloadConfig = field(default_factory=DownloadConfig)
    extra_bytes: int = 1 << 26


@dataclass(frozen=True)
class Received:
    """A state on disk, not looked into yet: where, and the bytes from whom. `own`: it lies in our checkpoint."""

    folder: Path
    parts: dict[str, int]
    own: bool = False


Receive = Callable[[tuple[int, str], Path], Awaitable[Received | None]]  # the right state, a new folder; None: not here
More = Callable[[], Awaitable[Iterable[View]]]


async def nobody_else() -> Iterable[View]:
    """Where all views are known already."""
    return ()


class CatchUp:
    """Compares this neuron with the majority and fetches the right state where they differ.

    `settled` turns true once this neuron, after its start, has found itself in step.
    """

    def __init__(
        self,
        *,
        uid: int,
        config: CatchUpConfig,
        run_id: str,
        engine: Engine,
        worker: TrainingWorker,
        transport: Transport,
        binding: PeerBinding,
        known: KnownPeers,
        keeper: Keeper,
        hub: Hub,
        folder: Path,
        telemetry: Telemetry,
        clock: Clock,
        seed: int,
        turn: asyncio.Lock,
    ) -> None:
        self._uid = uid
        self._config = config
        self._run_id = run_id
        self._engine = engine
        self._worker = worker
        self._transport = transport
        self._binding = binding
        self._known = known
        self._keeper = keeper
        self._hub = hub
        self._folder = folder
        self._telemetry = telemetry
        self._clock = clock
        self._order = random.Random(seed)
        self._turn = turn
        self._differs: tuple[tuple[int, str], float] | None = None
        self._failed_at: float | None = None
        self._started = clock.monotonic()
        self.settled = False

    async def check(
        self, views: Iterable[View], stakes: Sequence[float], validators: int, more: More = nobody_else
    ) -> bool:
        """Catch up if need be. Returns whether this neuron is in step now.

        `views` includes a validator's own; `validators` is how many of them the chain has. The views of miners alone,
        ours included, count for each other where no validator answers. `more` is asked for others who may have the
        state, only if it has to be fetched.
        """
        views = tuple(views)
        mine = self._state()
        right = schedule.majority_state(views, stakes)
        if right is None and not any(view.is_validator for view in views):
            right = schedule.miners_state(views)
        if right is None and not self.settled:
            right = self._first_agreement(views, stakes, validators)
            if right is None:
                return False
        if right is None or right == mine:
            self._differs = None
            self.settled = True
            return True
        if not self._is_due(right, mine[0]):
            return False
        self._telemetry.emit(
            OutOfStep(uid=self._uid, epoch=mine[0], state_hash=mine[1], right_epoch=right[0], right_hash=right[1])
        )
        views = (*views, *await more())
        fetched = await self._fetch(mine, right, [v for v in views if v.state == right and v.uid != self._uid])
        self._failed_at = None if fetched else self._clock.monotonic()
        return fetched

    def _first_agreement(
        self, views: Sequence[View], stakes: Sequence[float], validators: int
    ) -> tuple[int, str] | None:
        """The state to begin with where nobody is settled: that of all validators, or of most after some patience.

        Then it is also believed that the miners have gone on by themselves, if no validator was there meanwhile.
        Without any validator it is our own: there is nobody to agree with.
        """
        standing = [replace(view, settled=True) for view in views if view.is_validator]
        agreed = len({view.state for view in standing}) == 1 and len(standing) >= validators
        ahead = schedule.gone_on(views)
        behind_us = standing and max(view.epoch for view in standing) < self._state()[0]
        patience = self._config.patience * (2 if behind_us else 1)  # they may be about to follow the miners
        hasty = not agreed or ahead is not None or behind_us
        if hasty and validators and self._clock.monotonic() - self._started < patience:
            return None
        return ahead or schedule.majority_state(standing, stakes) or self._state()

    def unsettle(self) -> None:
        """Find out anew where the others stand, as after a start: they may have gone on without us."""
        self.settled = False
        self._started = self._clock.monotonic()

    def _state(self) -> tuple[int, str]:
        work = self._engine.work
        return work.epoch, work.state_hash

    def _is_due(self, right: tuple[int, str], epoch: int) -> bool:
        """At once when behind; otherwise the others may only not have committed yet, so wait `patience`."""
        now = self._clock.monotonic()
        if self._differs is None or self._differs[0] != right:
            self._differs, self._failed_at = (right, now), None
        if self._failed_at is not None and now - self._failed_at < self._config.retry_seconds:
            return False
        return right[0] > epoch or not self.settled or now - self._differs[1] >= self._config.patience

    async def _fetch(self, mine: tuple[int, str], right: tuple[int, str], holders: list[View]) -> bool:
        for left_behind in self._folder.glob(f"{INCOMING}*"):  # by a process that was killed
            await asyncio.to_thread(shutil.rmtree, left_behind)
        sources: dict[str, Receive] = {
            "checkpoint": self._from_checkpoint,
            "peers": functools.partial(self._from_peers, holders),
            "hub": self._from_hub,
        }
        for source, receive in sources.items():
            if self._state() != mine:  # a round has ended meanwhile: where we stand is looked at again
                return False
            if await self._try_source(source, receive, mine, right):
                return True
        return False

    async def _try_source(self, source: str, receive: Receive, mine: tuple[int, str], right: tuple[int, str]) -> bool:
        started = self._clock.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=INCOMING) as parent:
            try:
                received = await receive(right, Path(parent) / "state")
                if received is None:
                    return False
                await self._adopt(received.folder, mine, right)
            except (AveragingError, HubError, StateError) as error:
                self._failed(right[0], source, str(error))
                return False
            seconds = self._clock.monotonic() - started
            await self._keep(received)
        self._telemetry.emit(
            CaughtUp(
                uid=self._uid,
                epoch=right[0],
                state_hash=right[1],
                source=source,
                seconds=seconds,
                bytes=sum(received.parts.values()),
                parts=received.parts,
            )
        )
        return True

    async def _keep(self, received: Received) -> None:
        if received.own:
            await self._keeper.keep()
        else:
            await self._keeper.keep(received.folder)

    def _failed(self, epoch: int, source: str, reason: str) -> None:
        self._telemetry.emit(CatchUpFailed(uid=self._uid, epoch=epoch, source=source, reason=reason))

    async def _from_checkpoint(self, right: tuple[int, str], folder: Path) -> Received | None:
        """The state before, if it was right and a wrong round has led away from it."""
        kept = self._keeper.folder(right[0])
        if kept is None or read_manifest(kept).state_hash != right[1]:
            return None
        return Received(kept, {}, own=True)

    async def _from_peers(self, holders: list[View], right: tuple[int, str], folder: Path) -> Received | None:
        """A validator is the first, then whoever it happens to be, so that validators need not serve everybody."""
        known = [view for view in holders if view.peer.peer_id in self._known]
        if not known:
            return None
        self._order.shuffle(known)
        first = next((view for view in known if view.is_validator), known[0])
        known.sort(key=lambda view: view is not first)
        wanted = Wanted(
            peer=self._binding,
            run_id=self._run_id,
            epoch=right[0],
            state_hash=right[1],
            layout=self._engine.layout,
            optimizer=tuple(sorted(self._engine.vectors)),
            config=self._engine.architecture,
        )
        parts = await download_state(
            self._transport,
            [_source(view) for view in known],
            wanted,
            folder,
            refused=functools.partial(self._failed, right[0]),
            config=self._config.download,
        )
        return Received(folder, parts)

    async def _from_hub(self, right: tuple[int, str], folder: Path) -> Received:
        release = await self._hub.fetch(right[0], folder, functools.partial(self._require, right[1]))
        return Received(folder, {"hub": release.size})

    def _require(self, state_hash: str, release: Release) -> None:
        """Refuse a release before it is downloaded: of another state, or larger than ours can be."""
        if (release.run_id, release.state_hash) != (self._run_id, state_hash):
            raise StateMismatch(
                f"the hub has state {release.state_hash[:12]} of {release.run_id} as epoch {release.epoch}, "
                f"not {state_hash[:12]} of {self._run_id}"
            )
        limit = Chunks.of(self._engine.layout, self._engine.vectors).size + self._config.extra_bytes
        if release.size > limit:
            raise CorruptState(f"the hub's release has {release.size} bytes; a state of this run takes at most {limit}")

    async def _adopt(self, folder: Path, mine: tuple[int, str], right: tuple[int, str]) -> None:
        """Verify the state and take it over, in no round: an average belongs to the state that it was made at.

        Raises:
            StateError: it is not the right state, or a round has moved this neuron on meanwhile.
        """
        engine = self._engine
        state = await in_thread(lambda: read_state(folder, engine.layout, self._run_id, engine.vectors, right[1]))
        async with self._turn:
            if self._state() != mine:
                raise StateError("a round has ended meanwhile; where this neuron stands is looked at again")
            await self._worker.run(lambda engine: engine.adopt(state))


def _source(view: View) -> Source:
    return Source(name=f"peer:{view.uid}", peer_id=view.peer.peer_id, addresses=view.peer.addresses)
