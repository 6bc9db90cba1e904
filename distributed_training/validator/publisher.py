"""After a round: keep the new state for those who come late, measure it, and put it on the hub."""

from __future__ import annotations

import asyncio
import functools

from distributed_training.data.loader import IGNORED, MicroBatch
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import HeldOut, NotPublished
from distributed_training.hub.hub import Hub, ModelTag
from distributed_training.keeper import Keeper
from template.errors import HubError
from template.telemetry import Telemetry


class Publisher:
    """Publishes the states of one run. `held_out` are the batches that no miner is ever assigned."""

    def __init__(
        self,
        *,
        uid: int,
        run_id: str,
        engine: Engine,
        worker: TrainingWorker,
        keeper: Keeper,
        hub: Hub,
        held_out: list[MicroBatch],
        telemetry: Telemetry,
    ) -> None:
        self._uid = uid
        self._run_id = run_id
        self._engine = engine
        self._worker = worker
        self._keeper = keeper
        self._hub = hub
        self._held_out = held_out
        self._telemetry = telemetry
        self._lock = asyncio.Lock()

    async def measure(self) -> float | None:
        """The held-out loss of the current state, in nats a token; told in telemetry.

        Batch by batch, so that a round never waits for more than one. None if nothing is held out, or if the state
        was replaced meanwhile.
        """
        work = self._engine.work
        total, labels = 0.0, 0
        for batch in self._held_out:
            counted = int((batch.labels != IGNORED).sum())
            if not counted:
                continue
            loss = await self._worker.run(functools.partial(_loss_at, work.state_hash, batch))
            if loss is None:
                return None
            total, labels = total + loss * counted, labels + counted
        if not labels:
            return None
        self._telemetry.emit(HeldOut(uid=self._uid, epoch=work.epoch, loss=total / labels))
        return total / labels

    async def publish(self, epoch: int, samples: int, participants: tuple[int, ...]) -> None:
        """Measure the state of `epoch` and publish it; a hub that fails says so, loudly; training goes on."""
        async with self._lock:
            work = self._engine.work
            if work.epoch != epoch:
                self._not_published(epoch, f"the run has moved on to epoch {work.epoch}, whose leader publishes it")
                return
            await self._keeper.keep()
            loss = await self.measure()
            folder = self._keeper.folder(epoch)
            if folder is None:
                self._not_published(epoch, "it is not on disk")
                return
            tag = ModelTag(
                run_id=self._run_id,
                epoch=epoch,
                state_hash=work.state_hash,
                samples=samples,
                participants=participants,
                held_out_loss=loss,
            )
            try:
                await self._hub.publish(folder, tag)
            except HubError:
                return  # told by the hub as PublishFailed, with its reason

    def _not_published(self, epoch: int, reason: str) -> None:
        self._telemetry.emit(NotPublished(uid=self._uid, epoch=epoch, reason=reason))


def _loss_at(state_hash: str, batch: MicroBatch, engine: Engine) -> float | None:
    """The loss of `batch` at that state; None if the engine is at another one."""
    return engine.held_out_loss([batch]) if engine.state_hash == state_hash else None
