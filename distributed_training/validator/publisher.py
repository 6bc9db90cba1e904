"""After a round: measure the new state, put it on the hub, however far the run has moved on, and thin what is old."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distributed_training.data.loader import IGNORED, MicroBatch
from distributed_training.engine.audit import Auditor
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import EpochsThinned, HeldOut, NotPublished, NotThinned
from distributed_training.hub.hub import Hub, ModelTag
from distributed_training.hub.retention import Retention
from distributed_training.model.files import write_state
from distributed_training.model.state import State
from template.errors import HubError
from template.telemetry import Telemetry

RELEASE = "release-"  # prefix of the folders that releases are put together in
WAITING = 8  # states; older ones are dropped when publishing cannot keep up


@dataclass(frozen=True, eq=False)
class Publication:
    """A state that a round led to: how many samples and whose contributions are in its last update."""

    state: State
    samples: int
    participants: tuple[int, ...]


class Publisher:
    """Publishes the states of one run. `held_out` are the batches that no miner is ever assigned.

    `config` is the model's architecture, as config.json holds it; `folder` is where releases are put together;
    `retention` says which releases stay on the hub.
    """

    def __init__(
        self,
        *,
        uid: int,
        run_id: str,
        auditor: Auditor,
        worker: TrainingWorker,
        config: Mapping[str, Any],
        folder: Path,
        hub: Hub,
        retention: Retention,
        held_out: list[MicroBatch],
        telemetry: Telemetry,
    ) -> None:
        self._uid = uid
        self._run_id = run_id
        self._auditor = auditor
        self._worker = worker
        self._config = config
        self._folder = folder
        self._hub = hub
        self._retention = retention
        self._held_out = [batch for batch in held_out if (batch.labels != IGNORED).any()]
        self._telemetry = telemetry
        self._waiting: asyncio.Queue[Publication] = asyncio.Queue(WAITING)

    def add(self, publication: Publication) -> None:
        """Have a state published as soon as those before it are."""
        if self._waiting.full():
            self._not_published(self._waiting.get_nowait().state.epoch, "publishing cannot keep up with the run")
        self._waiting.put_nowait(publication)

    async def run(self) -> None:
        """Publish one after another, until cancelled."""
        while True:
            await self.publish(await self._waiting.get())

    async def measure(self, state: State) -> float | None:
        """The held-out loss at `state`, in nats a token; told in telemetry. None if nothing is held out.

        Batch by batch, so that a round never waits for more than one.
        """
        total, labels = 0.0, 0
        for batch in self._held_out:
            counted = int((batch.labels != IGNORED).sum())
            loss = await self._worker.run(functools.partial(self._loss, state, batch))
            total, labels = total + loss * counted, labels + counted
        if not labels:
            return None
        self._telemetry.emit(HeldOut(uid=self._uid, epoch=state.epoch, loss=total / labels))
        return total / labels

    async def publish(self, publication: Publication) -> None:
        """Measure a state and publish it; a hub that fails says so, loudly; training goes on."""
        state = publication.state
        tag = ModelTag(
            run_id=self._run_id,
            epoch=state.epoch,
            state_hash=state.hash,
            samples=publication.samples,
            participants=publication.participants,
            held_out_loss=await self.measure(state),
        )
        try:
            for left_behind in self._folder.glob(f"{RELEASE}*"):  # by a process that was killed
                await asyncio.to_thread(shutil.rmtree, left_behind)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=RELEASE) as folder:
                await asyncio.to_thread(write_state, Path(folder), state, self._config, self._run_id)
                await self._hub.publish(Path(folder), tag)
        except (OSError, SafetensorError) as error:
            self._not_published(state.epoch, f"it cannot be written to {self._folder}: {error}; free some space")
        except HubError:
            return  # told by the hub as PublishFailed, with its reason
        else:
            await self.thin(state.epoch)

    async def thin(self, epoch: int) -> None:
        """Take off the hub what the rule does not keep; peers may still be told to fetch `epoch` or the one before."""
        try:
            held = await self._hub.epochs()
            surplus = self._retention.surplus(held, spare=(epoch - 1, epoch))
            if surplus:
                await self._hub.remove(surplus)
                self._telemetry.emit(EpochsThinned(uid=self._uid, removed=surplus, kept=len(held) - len(surplus)))
        except HubError as error:
            self._telemetry.emit(NotThinned(uid=self._uid, reason=str(error)))

    def _loss(self, state: State, batch: MicroBatch, engine: object) -> float:
        return self._auditor.held_out_loss(state.params, [batch])

    def _not_published(self, epoch: int, reason: str) -> None:
        self._telemetry.emit(NotPublished(uid=self._uid, epoch=epoch, reason=reason))
