"""Chunks of a state: every byte in exactly one, out of the files and into them, and nothing wrong gets in."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distributed_training.model.chunk_files import ChunkReader, ChunkWriter, complete_from_chunks
from distributed_training.model.chunks import CHUNK, Chunks
from distributed_training.model.files import MODEL, OPTIMIZER, header, read_params, read_state
from distributed_training.model.layout import Layout, Tensor
from distributed_training.model.state import State
from template.errors import CorruptState
from tests.averaging.transfers import CONFIG, NAMES, RUN, make_offer, make_state

STATE = make_state()


@pytest.mark.parametrize("size", [4, CHUNK - 4, CHUNK, CHUNK + 4, 3 * CHUNK, 3 * CHUNK + 400])
@pytest.mark.parametrize("vectors", [1, 3])
def test_every_byte_lies_in_one_chunk(size: int, vectors: int) -> None:
    """Chunk after chunk covers vector after vector, without gap or overlap."""
    chunks = Chunks(size, vectors)
    places = [chunks.place(number) for number in range(chunks.count)]
    assert all(0 < place.size <= CHUNK for place in places)
    for vector in range(vectors):
        own = [place for place in places if place.vector == vector]
        assert [place.offset for place in own] == [sum(p.size for p in own[:i]) for i in range(len(own))]
        assert sum(place.size for place in own) == size
    assert sum(place.size for place in places) == chunks.size


def written(folder: Path, source: Path, order: list[int]) -> State:
    """A state put together from the chunks of another, in some order, and read as any other."""
    layout = STATE.layout
    with ChunkReader.open(source, Chunks.of(layout, NAMES)) as reader, ChunkWriter.create(folder, layout, NAMES) as to:
        for number in order:
            to.write(number, reader.read(number), STATE.digests)
    complete_from_chunks(folder, layout, RUN, STATE.epoch, NAMES, STATE.digests, CONFIG)
    return read_state(folder, layout, RUN, NAMES, STATE.hash)


def test_a_state_put_together_from_chunks_is_that_state(tmp_path: Path) -> None:
    """In any order; any reader of safetensors finds the tensors."""
    make_offer(tmp_path / "from", STATE)
    order = [int(number) for number in np.random.default_rng(0).permutation(9)]
    assert written(tmp_path / "to", tmp_path / "from", order).hash == STATE.hash
    loaded = load_file(tmp_path / "to" / MODEL) | load_file(tmp_path / "to" / OPTIMIZER)
    expected = dict(STATE.layout.split(STATE.params)) | dict(STATE.optimizer)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)


def test_a_missing_chunk_makes_no_state(tmp_path: Path) -> None:
    """What was never written is zeros, and those have another hash."""
    make_offer(tmp_path / "from", STATE)
    with pytest.raises(CorruptState, match="do not have the hash"):
        written(tmp_path / "to", tmp_path / "from", list(range(8)))


def test_a_chunk_with_another_digest_is_not_written(tmp_path: Path) -> None:
    """Its place stays as it was."""
    writer = ChunkWriter.create(tmp_path / "to", STATE.layout, NAMES)
    with writer, pytest.raises(CorruptState, match="chunk 3"):
        writer.write(3, b"x" * CHUNK, STATE.digests)
    content = (tmp_path / "to" / OPTIMIZER).read_bytes()
    assert not any(content[-2 * STATE.params.nbytes :])


def test_a_disk_that_is_too_small_is_found_before_the_first_chunk(tmp_path: Path) -> None:
    """Both files have their full size from the start."""
    with ChunkWriter.create(tmp_path / "to", STATE.layout, NAMES):
        blocks = sum(path.stat().st_blocks for path in (tmp_path / "to").iterdir())
    assert 512 * blocks >= 3 * STATE.params.nbytes


def test_tensors_in_another_order_are_refused(tmp_path: Path) -> None:
    """The bytes behind the header are the vector itself, or the file is not ours."""
    layout = Layout((Tensor("a", (2,), 0), Tensor("b", (2,), 2)))
    right = header({"a": (2,), "b": (2,)})
    swapped = right.replace(b'"a":', b'"c":').replace(b'"b":', b'"a":').replace(b'"c":', b'"b":')
    for name, start in (("right", right), ("swapped", swapped)):
        (tmp_path / name).write_bytes(start + np.arange(4, dtype=np.float32).tobytes())
    assert read_params(tmp_path / "right", layout).tolist() == [0, 1, 2, 3]
    with pytest.raises(CorruptState, match="in order of their names"):
        read_params(tmp_path / "swapped", layout)


def test_reading_takes_the_memory_of_one_state(tmp_path: Path) -> None:
    """Every tensor is read into its place; checking and hashing copy nothing."""
    made = make_state(size=3_000_000)
    make_offer(tmp_path / "state", made)
    tracemalloc.start()
    try:
        again = read_state(tmp_path / "state", made.layout, RUN, NAMES, made.hash)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert again.hash == made.hash
    assert peak < 1.1 * 3 * made.params.nbytes


def test_digests_are_those_of_the_bytes_on_disk(tmp_path: Path) -> None:
    """What a reader gives is what was hashed."""
    offer = make_offer(tmp_path / "from", STATE)
    with ChunkReader.open(offer.folder, offer.chunks) as reader:
        read = [hashlib.sha256(reader.read(number)).digest() for number in range(offer.chunks.count)]
    assert b"".join(read) == STATE.digests
