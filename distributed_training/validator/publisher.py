"""After a round: keep the new state for those who come late, measure it, and put it on the hub."""

from __future__ import annotations

import asyncio

from distributed_training.data.loader import MicroBatch
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import HeldOut
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

    async def measure(self) -> float:
        """The held-out loss of the current state, in nats a token; told in telemetry."""
        epoch, loss = await self._worker.run(lambda engine: (engine.epoch, engine.held_out_loss(self._held_out)))
        self._telemetry.emit(HeldOut(uid=self._uid, epoch=epoch, loss=loss))
        return loss

    async def publish(self, epoch: int, samples: int, participants: tuple[int, ...]) -> None:
        """Measure the state of `epoch` and publish it; a hub that fails says so, loudly; training goes on.

        Nothing is published if the state has moved on meanwhile: the next leader publishes the next one.
        """
        async with self._lock:
            engine = self._engine
            if engine.epoch != epoch:
                return
            state_hash = engine.state_hash
            loss = await self.measure()
            folder = self._keeper.folder(epoch)
            if folder is None:
                return
            tag = ModelTag(
                run_id=self._run_id,
                epoch=epoch,
                state_hash=state_hash,
                samples=samples,
                participants=participants,
                held_out_loss=loss,
            )
            try:
                await self._hub.publish(folder, tag)
            except HubError:
                return  # told by the hub as PublishFailed, with its reason
