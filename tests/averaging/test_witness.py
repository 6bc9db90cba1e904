"""What a reducer keeps of the parts: the right values, of whole parts only, where nobody can know it beforehand."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from distributed_training.averaging.codec import codec_named
from distributed_training.averaging.codecs.errors import error_bounds
from distributed_training.averaging.feedback import encode_with_error
from distributed_training.averaging.memory import MemoryNetwork
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.witness import Watch, Witness
from tests.averaging.groups import contributions, make_plan, member, memory_group, weights

START, STOP, CHUNK = 1000, 9000, 700
NOTHING = np.zeros(20_001, np.float32)
KNOWN = np.array([3, 1000, 1699, 1700, 5000, 8999, 9000, 20_000])


def watched(drawn: int = 50, seed: int = 1) -> Witness:
    return Witness(Watch(KNOWN, drawn, seed), START, STOP, "none")


def see_all(witness: Witness, uid: int, vector: np.ndarray, without: int | None = None) -> None:
    for index, (low, high) in enumerate(chunks(STOP - START, CHUNK)):
        if index != without:
            witness.see(uid, low, vector[START + low : START + high])


def test_it_keeps_what_was_sent_at_its_coordinates() -> None:
    """Known ones that lie in the share, and drawn ones beside them, whatever the chunks are; a copy of the values."""
    witness = watched()
    vectors = {uid: np.random.default_rng(uid).normal(size=20_001).astype(np.float32) for uid in (4, 2)}
    for uid, vector in vectors.items():
        moving = vector.copy()
        see_all(witness, uid, moving)
        moving[:] = np.nan  # the memory is used again
    seen = witness.sightings(vectors[4], {7: (0, 4000), 8: (4000, 20_001)})
    assert seen.known.tolist() == [1000, 1699, 1700, 5000, 8999]
    assert seen.average.tolist() == vectors[4][KNOWN].tolist()
    assert seen.reducers.tolist() == [7, 7, 7, 7, 8, 8, 8, 8]
    assert 40 <= seen.drawn.size <= 50
    assert not set(seen.drawn) & set(KNOWN)
    assert seen.drawn.min() >= START
    assert seen.drawn.max() < STOP
    for uid, vector in vectors.items():
        np.testing.assert_array_equal(seen.by_uid[uid].known, vector[seen.known])
        np.testing.assert_array_equal(seen.by_uid[uid].drawn, vector[seen.drawn])
        assert not seen.by_uid[uid].errors.any()


def test_a_part_that_did_not_come_whole_is_no_evidence() -> None:
    """Its other values would read as zeros."""
    witness = watched()
    vector = np.ones(20_001, np.float32)
    see_all(witness, 1, vector)
    see_all(witness, 2, vector, without=3)
    assert list(witness.sightings(vector, {}).by_uid) == [1]


@pytest.mark.parametrize("drawn", [50, 7990, 100_000])
def test_what_is_drawn_depends_on_the_secret_seed(drawn: int) -> None:
    """All over the share; at most the whole of it."""
    first, other = (watched(drawn, seed).sightings(NOTHING, {}).drawn for seed in (1, 2))
    assert len(set(first)) == first.size
    if drawn < STOP - START:
        assert first.tolist() != other.tolist()
    else:
        assert first.size == STOP - START - 5


@pytest.mark.parametrize(
    "codec", ["none", "fp16", "bf16", "int8-block64", "int4-block256", "topk4-fp16", "topk4-int8-block64"]
)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_no_codec_errs_by_more_than_its_bound(codec: str, scale: float) -> None:
    """Taken from what was decoded alone; nor is the bound so wide that it says nothing."""
    values = (np.random.default_rng(0).standard_t(3, 10_000) * scale).astype(np.float32)
    payload, error = encode_with_error(codec_named(codec), values)
    decoded = codec_named(codec).decode(payload, values.size)
    where = np.arange(0, values.size, 7)
    bounds = error_bounds(codec, decoded, where)
    assert (np.abs(error[where]) <= bounds).all()
    told = np.isfinite(bounds)
    assert told.mean() > 0.2
    if codec != "none" and scale == 1.0:
        assert np.abs(error[where][told]).max() > 0.2 * bounds[told].min()


def test_two_bits_bound_nothing() -> None:
    """A level is a mean: nothing follows for one value."""
    values = np.ones(256, np.float32)
    assert np.isinf(error_bounds("int2-block64", values, np.array([5]))).all()
    assert np.isinf(error_bounds("topk4-int2-block64", values, np.array([5]))).all()


async def test_a_validator_sees_what_everybody_put_in() -> None:
    """In a real round: values, weights and the hashes that each member bound itself to before anything moved."""
    async with memory_group(4) as (group, _):
        plan = make_plan(group.members(auxiliary=(0,)), 5000)
        values, by = contributions(plan), weights(plan)
        watch = Watch(np.arange(0, 5000, 50), 64, 7)
        results = await asyncio.gather(
            group.averagers[0].run(plan, None, 0.0, watch=watch),
            *(group.averagers[uid].run(plan, values[uid], by[uid], records=f"{uid}" * 64) for uid in (1, 2, 3)),
        )
    outcome = results[0].outcome
    start, stop = plan.ranges()[0]
    assert outcome.sightings is not None
    assert outcome.sightings.known.tolist() == [i for i in range(0, 5000, 50) if start <= i < stop]
    for uid in (1, 2, 3):
        vector = values[uid]
        assert vector is not None
        np.testing.assert_array_equal(outcome.sightings.by_uid[uid].drawn, vector[outcome.sightings.drawn])
    assert results[1].average is not None
    assert outcome.sightings.average.tolist() == results[1].average[::50].tolist()
    assert outcome.records == {uid: f"{uid}" * 64 for uid in (1, 2, 3)}
    assert outcome.weights == {uid: by[uid] for uid in (1, 2, 3)}
    assert results[1].outcome.sightings is None


def test_a_member_reduces_another_part_of_the_model_in_each_round() -> None:
    """Its place follows from the epoch, for all members and attempts alike."""
    network = MemoryNetwork()
    members = [member(uid, network.transport(f"peer-{uid}")) for uid in range(5)]
    plan = make_plan(members, 1000)
    starts = {dataclasses.replace(plan, epoch=epoch).ranges()[0][0] for epoch in range(40)}
    assert starts == {0, 200, 400, 600, 800}
