"""Getting back in step: the state that most of the validators' stake stands at, from a peer or else from the hub.

Every source is checked against the expected state hash; a wrong, cut or stale one is told and the next one is tried.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distributed_training import schedule
from distributed_training.averaging.state_transfer import fetch_state
from distributed_training.averaging.streams import Transport
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import CatchUpFailed, CaughtUp, OutOfStep
from distributed_training.hub.hub import Hub
from distributed_training.keeper import Keeper
from distributed_training.model.files import read_state
from distributed_training.peers import KnownPeers
from distributed_training.schedule import View
from template.clock import Clock
from template.errors import AveragingError, HubError, StateError
from template.telemetry import Telemetry

INCOMING = "incoming-"  # prefix of the folders that states are received in


@dataclass(frozen=True, kw_only=True)
class CatchUpConfig:
    """`patience` is how long a neuron that is not behind lets the majority differ before it gives its state up, and how
    long one that has just started waits for the validators to say where they stand.

    When no source had the right state, all are tried again after `retry_seconds`.
    """

    patience: float = 10.0
    retry_seconds: float = 10.0
    transfer_seconds: float = 600.0
    max_bytes: int = 1 << 38


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

    async def check(self, views: Iterable[View], stakes: Sequence[float], validators: int) -> bool:
        """Catch up if need be. Returns whether this neuron is in step now.

        `views` includes a validator's own; `validators` is how many of them the chain has. The views of miners alone,
        ours included, count for each other where no validator answers.
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
        """Validators are asked before miners: they have more to lose by being slow."""
        for left_behind in self._folder.glob(f"{INCOMING}*"):  # by a process that was killed
            await asyncio.to_thread(shutil.rmtree, left_behind)
        self._order.shuffle(holders)
        for holder in sorted(holders, key=lambda view: not view.is_validator):
            if await self._try_source(f"peer:{holder.uid}", mine, right, holder):
                return True
        return await self._try_source("hub", mine, right, None)

    async def _try_source(
        self, source: str, mine: tuple[int, str], right: tuple[int, str], holder: View | None
    ) -> bool:
        started = self._clock.monotonic()
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=INCOMING) as parent:
            folder = Path(parent) / "state"
            try:
                await self._receive(right, holder, folder)
                await self._adopt(folder, mine, right)
            except (AveragingError, HubError, StateError) as error:
                self._telemetry.emit(CatchUpFailed(uid=self._uid, epoch=right[0], source=source, reason=str(error)))
                return False
        await self._keeper.keep()
        seconds = self._clock.monotonic() - started
        self._telemetry.emit(
            CaughtUp(uid=self._uid, epoch=right[0], state_hash=right[1], source=source, seconds=seconds)
        )
        return True

    async def _receive(self, right: tuple[int, str], holder: View | None, folder: Path) -> None:
        epoch, state_hash = right
        if holder is None:
            await self._hub.fetch(epoch, folder)
            return
        await fetch_state(
            self._transport,
            holder.peer.peer_id,
            holder.peer.addresses,
            run_id=self._run_id,
            epoch=epoch,
            expected_hash=state_hash,
            destination=folder,
            max_bytes=self._config.max_bytes,
            seconds=self._config.transfer_seconds,
            allow=self._known.__contains__,
        )

    async def _adopt(self, folder: Path, mine: tuple[int, str], right: tuple[int, str]) -> None:
        """Take the state over, in no round: an average must be applied to the state that it was made at.

        Raises:
            StateError: it is not the right state, or a round has moved this neuron on meanwhile.
        """
        async with self._turn:
            if self._state() != mine:
                raise StateError("a round has ended meanwhile; where this neuron stands is looked at again")
            await self._worker.run(lambda engine: self._load(engine, folder, right[1]))

    def _load(self, engine: Engine, folder: Path, state_hash: str) -> None:
        engine.adopt(read_state(folder, engine.layout, self._run_id, engine.vectors, state_hash))
