"""A checkpoint on disk, and what of it is offered to peers."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.checkpoint import Snapshot
from distributed_training.engine.engine import Engine
from distributed_training.keeper import Keeper
from distributed_training.model.chunk_files import ChunkReader
from distributed_training.run import ReplaySpec
from template.errors import StateError
from tests.roles import AUDIT, Neuron, subnet


async def end_epoch(neuron: Neuron) -> None:
    await neuron.worker.apply(np.ones(neuron.engine.layout.size, np.float32))


async def test_an_offer_names_the_bytes_on_disk(tmp_path: Path) -> None:
    """Each chunk with its digest, under the hash of the engine's state."""
    async with subnet(tmp_path, miners=1) as net:
        neuron = net.neurons[1]
        await neuron.keeper.save()
        offer = neuron.keeper.offer(0)
        assert offer is not None
        assert (offer.state_hash, offer.folder) == (neuron.engine.state_hash, neuron.keeper.folder(0))
        with ChunkReader.open(offer.folder, offer.chunks) as reader:
            chunks = [reader.read(number) for number in range(offer.chunks.count)]
        assert b"".join(hashlib.sha256(chunk).digest() for chunk in chunks) == offer.digests
        assert b"".join(chunks[: offer.chunks.per_vector]) == neuron.engine.state.params.tobytes()


async def test_a_received_state_is_moved_into_the_checkpoint(tmp_path: Path) -> None:
    """Not written again; and only if it is the one the engine has adopted."""
    async with subnet(tmp_path, miners=1) as net:
        source, neuron = net.neurons[0], net.neurons[1]
        await end_epoch(source)
        await source.keeper.save()
        folder = source.keeper.folder(1)
        assert folder is not None
        received = shutil.copytree(folder, tmp_path / "received")
        number = (received / "model.safetensors").stat().st_ino
        await neuron.keeper.keep(received)  # nobody has adopted it
        assert neuron.keeper.folder(1) is None
        await neuron.worker.run(lambda engine: engine.adopt(source.engine.state))
        await neuron.keeper.keep(received)
        kept = neuron.keeper.folder(1)
        assert kept is not None
        assert (kept / "model.safetensors").stat().st_ino == number
        assert neuron.keeper.offer(1) is not None
        assert await neuron.worker.run(lambda engine: engine.load(tmp_path / "checkpoint1"))
        assert neuron.engine.state_hash == source.engine.state_hash


async def test_only_this_epoch_and_the_last_are_offered(tmp_path: Path) -> None:
    """What is gone from the disk is not promised."""
    async with subnet(tmp_path, miners=1) as net:
        neuron = net.neurons[1]
        for _ in range(3):
            await neuron.keeper.save()
            await end_epoch(neuron)
        await neuron.keeper.save()
        assert [neuron.keeper.offer(epoch) is not None for epoch in range(5)] == [False, False, True, True, False]


async def test_another_state_of_the_same_epoch_replaces_the_offer(tmp_path: Path) -> None:
    """After a wrong state was given up, nobody is offered its digests."""
    async with subnet(tmp_path, miners=1) as net:
        neuron, other = net.neurons[0], net.neurons[1]
        await end_epoch(neuron)
        await neuron.keeper.save()
        await other.worker.apply(np.full(other.engine.layout.size, -1, np.float32))
        right = other.engine.state
        await neuron.worker.run(lambda engine: engine.adopt(right))
        await neuron.keeper.save()
        offer = neuron.keeper.offer(1)
        assert offer is not None
        assert offer.state_hash == right.hash


async def test_a_restarted_neuron_offers_what_it_loaded(tmp_path: Path) -> None:
    """A new keeper over the same folder, after its first save."""
    async with subnet(tmp_path, miners=1) as net:
        neuron = net.neurons[1]
        await end_epoch(neuron)
        await neuron.keeper.save()
        again = Keeper(tmp_path / "checkpoint1", neuron.worker, neuron.telemetry)
        assert again.offer(1) is None
        assert await neuron.worker.run(lambda engine: engine.load(tmp_path / "checkpoint1"))
        await again.save()
        assert again.offer(1) == neuron.keeper.offer(1)


async def test_a_disk_that_takes_nothing_is_told_and_training_goes_on(tmp_path: Path) -> None:
    """`save` raises, for the start; `keep` says so, for the rest of the life."""
    async with subnet(tmp_path, miners=1) as net:
        neuron = net.neurons[1]
        (tmp_path / "checkpoint1").write_text("a file is in the way")
        with pytest.raises(StateError, match="cannot be written"):
            await neuron.keeper.save()
        await neuron.keeper.keep()
        assert neuron.told("NotSaved")[0]["what"] == "checkpoint"
        assert neuron.keeper.offer(0) is None


async def test_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot is taken between two micro-batches; what is trained while it is written comes with the next one."""
    async with subnet(tmp_path, miners=1) as net:
        neuron, go = net.neurons[1], threading.Event()
        await net.train(1, 1)
        write = neuron.engine.write

        def slowly(folder: Path, snapshot: Snapshot) -> None:
            assert go.wait(20)
            write(folder, snapshot)

        monkeypatch.setattr(neuron.engine, "write", slowly)
        saves = [asyncio.create_task(neuron.keeper.save()) for _ in range(2)]
        await net.train(1, 1, first=1)
        assert not any(save.done() for save in saves)
        go.set()
        await asyncio.gather(*saves)
        again = Engine(net.spec, net.loader.tokenizer.vocab_size)
        assert again.load(tmp_path / "checkpoint1")
        assert again.records == neuron.engine.records


async def test_states_that_a_miner_has_committed_to_can_be_asked_for(tmp_path: Path) -> None:
    """By their hashes, before and after a restart, from disk; a damaged one is lost and stops nothing."""
    audit = dataclasses.replace(AUDIT, replay=ReplaySpec(stretch=2, share=1.0, tolerance=0.1))
    async with subnet(tmp_path, miners=1, strategy="diloco", audit=audit) as net:
        neuron = net.neurons[1]
        await net.train(1, 4)
        await neuron.keeper.save()
        marks = [mark.state for mark in neuron.engine.work.marks]
        assert len(marks) == 3
        assert neuron.engine.snapshot().standings == ()
        first = [neuron.keeper.own(state_hash) for state_hash in marks]
        again = Keeper(tmp_path / "checkpoint1", neuron.worker, neuron.telemetry)
        (tmp_path / "checkpoint1" / f"own-{marks[1]}" / "state.json").write_text("{}")
        await again.save()
        second = [again.own(state_hash) for state_hash in marks]
        assert all(first)
        assert second == [first[0], None, first[2]]
        assert neuron.keeper.own("f" * 64) is None
