"""Keeps a neuron's checkpoint on disk, and offers the states in it to peers that come late."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from safetensors import SafetensorError

from distributed_training.averaging.state_transfer import StateOffer
from distributed_training.engine.checkpoint import Snapshot, standing_folder, state_folder, take_state
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.events import NotSaved
from distributed_training.model.chunks import Chunks
from distributed_training.model.files import read_manifest
from template.errors import StateError
from template.telemetry import Telemetry

log = logging.getLogger(__name__)

KEPT_OFFERS = 2


class Keeper:
    """Takes snapshots in the worker's thread and writes them beside it, so that training does not wait for the disk.

    An offer's digests are those that the state's hash was made of.
    """

    def __init__(self, folder: Path, worker: TrainingWorker, telemetry: Telemetry) -> None:
        self._folder = folder
        self._worker = worker
        self._telemetry = telemetry
        self._offers: dict[int, StateOffer] = {}
        self._own: dict[str, StateOffer | None] = {}
        self._saving = asyncio.Lock()
        self._writing = threading.Lock()  # a save that was cancelled still writes to its end

    async def keep(self, received: Path | None = None) -> None:
        """Save; a disk that does not take it is told, and training goes on with the checkpoint before."""
        try:
            await self.save(received)
        except StateError as error:
            self._telemetry.emit(NotSaved(what="checkpoint", reason=str(error)))

    async def save(self, received: Path | None = None) -> None:
        """Write state and progress as they are at the next micro-batch boundary.

        Args:
            received: the folder of a state that was adopted; it is moved instead of written once more.

        Raises:
            StateError: the disk does not take it; what was saved before is still there.
        """
        async with self._saving:
            engine, snapshot = await self._worker.run(lambda engine: (engine, engine.snapshot()))
            try:
                offer = await asyncio.to_thread(self._write, engine, snapshot, received)
            except (OSError, SafetensorError) as error:
                raise StateError(
                    f"the checkpoint cannot be written to {self._folder}: {error}; free some space"
                ) from error
            await self._worker.run(lambda engine: engine.kept_elsewhere(snapshot.standings))
            epoch = snapshot.state.epoch
            self._offers.pop(epoch, None)
            self._offers[epoch] = offer
            for old in list(self._offers)[:-KEPT_OFFERS]:  # in order of saving: a run may go back to an earlier epoch
                del self._offers[old]

    def folder(self, epoch: int) -> Path | None:
        """Where the state of `epoch` lies; None if it is not kept (any more)."""
        return state_folder(self._folder, epoch)

    def offer(self, epoch: int) -> StateOffer | None:
        """The state of `epoch` as peers may have it; None if it is not kept (any more)."""
        offer = self._offers.get(epoch)
        return offer if offer is not None and self.folder(epoch) is not None else None

    def own(self, state_hash: str) -> StateOffer | None:
        """A state that this neuron's own steps led to, if it is kept (still)."""
        return self._own.get(state_hash)

    def _offer_own(self, engine: Engine, snapshot: Snapshot, state_hash: str) -> StateOffer | None:
        """The offer of a state that marks name; None if it was lost, as in a crash before it was written."""
        if state_hash in self._own:
            return self._own[state_hash]
        standing = next((each for each in snapshot.standings if each.hash == state_hash), None)
        try:
            standing = standing or engine.kept_standing(self._folder, state_hash)  # of a run that was stopped
        except StateError as error:
            log.warning("a state that this miner has committed to is lost: %s", error)
        if standing is None:
            return None
        chunks = Chunks.of(standing.layout, standing.optimizer)
        folder = standing_folder(self._folder, state_hash)
        return StateOffer(state_hash=state_hash, folder=folder, chunks=chunks, digests=standing.digests)

    def _write(self, engine: Engine, snapshot: Snapshot, received: Path | None) -> StateOffer:
        state = snapshot.state
        with self._writing:
            # it is another one if a round has moved the engine on meanwhile
            if received is not None and read_manifest(received).state_hash == state.hash:
                take_state(self._folder, received, state.epoch)
            engine.write(self._folder, snapshot)
            self._own = {key: self._offer_own(engine, snapshot, key) for key in sorted(snapshot.marked)}
        folder = self.folder(state.epoch)
        assert folder is not None, "it was just saved"
        chunks = Chunks.of(state.layout, state.optimizer)
        return StateOffer(state_hash=state.hash, folder=folder, chunks=chunks, digests=state.digests)
