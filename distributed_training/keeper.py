"""Keeps a neuron's checkpoint on disk, and offers the states in it to peers that come late."""

from __future__ import annotations

from pathlib import Path

from distributed_training.averaging.state_transfer import StateFile, StateOffer, describe
from distributed_training.engine.checkpoint import state_folder
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker

KEPT_OFFERS = 2


class Keeper:
    """Saves in the worker's thread; digests of a state are computed once, when it is first saved."""

    def __init__(self, folder: Path, worker: TrainingWorker) -> None:
        self._folder = folder
        self._worker = worker
        self._offers: dict[int, StateOffer] = {}

    async def save(self) -> None:
        """Write state and progress as they are at the next micro-batch boundary."""
        epoch, offer = await self._worker.run(self._save)
        self._offers[epoch] = offer
        for old in sorted(self._offers)[:-KEPT_OFFERS]:
            del self._offers[old]

    def folder(self, epoch: int) -> Path | None:
        """Where the state of `epoch` lies; None if it is not kept (any more)."""
        return state_folder(self._folder, epoch)

    def offer(self, epoch: int) -> StateOffer | None:
        """The state of `epoch` as peers may have it; None if it is not kept (any more)."""
        offer = self._offers.get(epoch)
        return offer if offer is not None and self.folder(epoch) is not None else None

    def _save(self, engine: Engine) -> tuple[int, StateOffer]:
        engine.save(self._folder)
        known = self._offers.get(engine.epoch)
        if known is not None and known.state_hash == engine.state_hash:
            return engine.epoch, known
        folder = self.folder(engine.epoch)
        assert folder is not None, "it was just saved"
        return engine.epoch, StateOffer(state_hash=engine.state_hash, files=_described(folder))


def _described(folder: Path) -> tuple[StateFile, ...]:
    return tuple(describe(path.name, path) for path in sorted(folder.iterdir()))
