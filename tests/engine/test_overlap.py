"""An engine in a run with overlap: what it trains when, at which parameters, and what a restart finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.audit import Auditor
from distributed_training.engine.batch import MicroBatch
from distributed_training.engine.engine import Engine
from distributed_training.engine.worker import TrainingWorker
from distributed_training.model.layout import Vector
from distributed_training.protocol import Record
from distributed_training.run import RunSpec
from template.clock import ManualClock
from template.errors import CorruptState, StateError
from tests.engine.test_worker import three_an_epoch, until
from tests.engine.tiny import VOCAB, batch, overlapping


def engine(spec: RunSpec | None = None) -> Engine:
    return Engine(spec or overlapping(), VOCAB)


def in_epoch_one() -> Engine:
    """Two micro-batches in epoch 0 and, trained ahead, one in epoch 1."""
    made = engine()
    made.train(batch(0))
    made.train(batch(1))
    given = made.set_aside().vector
    made.train(batch(2))
    made.apply(given)
    return made


def recomputed(epoch: int, params: Vector, number: int) -> Record:
    return Auditor(overlapping(), VOCAB).recompute(epoch, params, batch(number))


def test_each_epoch_is_trained_at_the_state_before() -> None:
    """Ahead of its beginning and after it, at the same parameters; epoch 0 and the next one at the initial state."""
    made = in_epoch_one()
    first, second = made.bases.values()
    made.train(batch(3))
    assert made.work_of(0).base_hash == made.work_of(0).state_hash == made.work.base_hash
    assert list(made.bases) == [made.work.base_hash, made.work.state_hash]
    assert made.records == (recomputed(1, first, 2), recomputed(1, first, 3))
    made.set_aside()
    made.apply(np.ones_like(first))
    made.train(batch(4))
    assert made.records == (recomputed(2, second, 4),)
    assert recomputed(2, first, 4) != made.records[0]


def test_what_is_set_aside_does_not_grow() -> None:
    """However often the round is tried: the same bytes, while the next epoch's records grow unseen by others."""
    made = engine()
    made.train(batch(0))
    first, work = made.set_aside(), made.work
    for number in (0, 1):
        made.train(batch(number))
        again = made.set_aside()
        assert (again.vector.tobytes(), again.samples, again.records) == (first.vector.tobytes(), 4, first.records)
    assert (made.work, made.samples, made.samples_ahead) == (work, 4, 8)
    assert (made.in_training.epoch, made.in_training.next_number) == (1, 2)
    with pytest.raises(StateError, match="no work of epoch 1"):
        made.work_of(1)
    with pytest.raises(StateError, match="already trained in epoch 1"):
        made.train(batch(1))


def test_never_more_than_one_epoch_ahead() -> None:
    """Going ahead twice is going ahead once; without overlap it does not happen at all."""
    made = engine()
    made.train(batch(0))
    assert [made.go_ahead(), made.go_ahead()] == [True, False]
    assert made.in_training.epoch == 1
    plain = engine(dataclasses.replace(overlapping(), epoch=dataclasses.replace(overlapping().epoch, overlap=False)))
    plain.train(batch(0))
    assert not plain.go_ahead()
    plain.set_aside()
    plain.train(batch(1))
    assert (plain.samples, plain.samples_ahead, plain.in_training.epoch) == (8, 0, 0)


def test_nothing_is_set_aside_where_nothing_was_trained() -> None:
    """It stays in this epoch: the next attempt may find something."""
    made = engine()
    with pytest.raises(StateError, match="nothing was trained"):
        made.set_aside()
    made.train(batch(0))
    assert made.samples == 4


def test_a_bad_average_leaves_both_epochs_work() -> None:
    """State, contribution and what was done ahead are as before."""
    made = engine()
    made.train(batch(0))
    given = made.set_aside().vector
    made.train(batch(1))
    with pytest.raises(CorruptState):
        made.apply(np.full_like(given, np.nan))
    with pytest.raises(StateError, match="does not follow"):
        made.advance(made.state)
    assert (made.epoch, made.samples_ahead) == (0, 4)
    np.testing.assert_array_equal(made.set_aside().vector, given)
    made.apply(given)
    assert [record.number for record in made.records] == [1]


def test_an_adopted_state_is_trained_at_itself() -> None:
    """Who did not come through the state before begins at once, at the parameters that it has, and says so."""
    ahead, late = in_epoch_one(), engine()
    late.train(batch(7))
    late.set_aside()
    late.train(batch(8))
    late.adopt(ahead.state)
    assert (late.samples, late.samples_ahead) == (0, 0)
    assert late.work.base_hash == late.state_hash
    late.train(batch(5))
    assert late.records == (recomputed(1, ahead.state.params, 5),)
    average = late.set_aside().vector
    for made in (ahead, late):
        made.go_ahead()
        made.apply(average)
        made.train(batch(6))
    assert ahead.records == late.records
    assert ahead.state_hash == late.state_hash


@pytest.mark.parametrize("ahead", [False, True])
def test_a_restart_resumes_both_epochs(tmp_path: Path, ahead: bool) -> None:
    """Before or after the contribution was set aside: the same bits as a miner that was not interrupted."""
    first = in_epoch_one()
    if ahead:
        first.set_aside()
        first.train(batch(3))
    first.save(tmp_path)
    second = engine()
    assert second.load(tmp_path)
    assert (second.work, second.in_training, second.bases.keys()) == (first.work, first.in_training, first.bases.keys())
    average = np.ones(first.layout.size, np.float32)
    contributions = []
    for made in (first, second):
        made.train(batch(4))
        contributions.append(made.set_aside().vector)
        made.train(batch(5))
        made.apply(average)
        made.train(batch(6))
        contributions.append(made.set_aside().vector)
    np.testing.assert_array_equal(contributions[:2], contributions[2:])
    assert [first.records_of(e) for e in range(3)] == [second.records_of(e) for e in range(3)]
    assert first.state_hash == second.state_hash


def test_a_restart_without_its_progress_goes_on_at_the_state_that_it_has(tmp_path: Path) -> None:
    """Killed between state and progress: the work is lost, the epoch is not."""
    made = in_epoch_one()
    made.save(tmp_path)
    old = (tmp_path / "progress.safetensors").read_bytes()
    made.set_aside()
    made.apply(np.ones(made.layout.size, np.float32))
    made.save(tmp_path)
    (tmp_path / "progress.safetensors").write_bytes(old)
    resumed = engine()
    assert resumed.load(tmp_path)
    assert (resumed.epoch, resumed.samples, resumed.work.base_hash) == (2, 0, made.state_hash)
    resumed.train(batch(0))
    assert resumed.records == (recomputed(2, made.state.params, 0),)


def test_held_out_loss_is_that_of_the_state() -> None:
    """Not of the parameters that are trained at, which stay the ones they were."""
    made = in_epoch_one()
    base = next(iter(made.bases.values()))
    expected = Auditor(overlapping(), VOCAB).held_out_loss(made.state.params, [batch(9)])
    assert made.held_out_loss([batch(9)]) == expected
    made.train(batch(5))
    assert made.records[-1] == recomputed(1, base, 5)


async def test_a_worker_goes_on_when_the_pages_are_used_up() -> None:
    """With the next epoch's, and no further until this one has ended."""
    async with TrainingWorker(engine(), three_an_epoch) as running:
        made = await running.run(lambda engine: engine)
        await running.resume()
        await until(lambda: made.samples_ahead == 12)
        assert (made.epoch, made.samples) == (0, 12)
        await running.apply((await running.set_aside()).vector)
        assert made.samples == 12
        await until(lambda: made.samples_ahead == 12)
        assert (made.epoch, made.in_training.epoch) == (1, 2)


class Timed(Engine):
    """Each micro-batch takes two seconds of its clock."""

    def train(self, batch: MicroBatch) -> Record:
        assert isinstance(self._clock, ManualClock)
        self._clock._elapsed += 2.0
        return super().train(batch)


async def test_idle_seconds_are_those_without_a_micro_batch() -> None:
    """What a miner's machine did nothing in, by the clock that was given."""
    clock = ManualClock()
    async with TrainingWorker(Timed(overlapping(), VOCAB, clock=clock), three_an_epoch, clock=clock) as running:
        await clock.advance(7.0)
        await running.resume()
        await until(lambda: running.busy_seconds == 12.0)
        assert running.idle_seconds == 7.0
        await clock.advance(5.0)
        assert running.idle_seconds == 12.0
