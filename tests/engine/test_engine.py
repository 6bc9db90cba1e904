"""The training state of a neuron: what accumulates, what ends an epoch, what survives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from distributed_training.engine.audit import Auditor
from distributed_training.engine.checkpoint import PROGRESS
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Engine
from distributed_training.engine.records import contribution_at_coordinates, records_hash
from distributed_training.engine.replica import Replica
from distributed_training.model.files import MODEL, read_state
from distributed_training.protocol import Record
from template.clock import ManualClock
from template.errors import CorruptState, DataError, StateError, StateMismatch
from tests.engine.tiny import VOCAB, batch, spec


def engine() -> Engine:
    return Engine(spec(), VOCAB)


def trained(numbers: range = range(3)) -> Engine:
    made = engine()
    for number in numbers:
        made.train(batch(number, samples=number + 1))
    return made


def test_contribution_is_the_samples_weighted_mean() -> None:
    """Sum of n g over sum of n, from gradients taken one by one at the base state."""
    contribution = trained().contribution()
    replica = Replica(spec(), VOCAB)
    parts = [replica.gradient(batch(n, samples=n + 1))[1].double().numpy() * (n + 1) for n in range(3)]
    expected = np.sum(parts, axis=0) / 6
    assert contribution.samples == 6
    assert contribution.vector.dtype == np.float32
    assert np.linalg.norm(contribution.vector - expected) < 1e-6 * np.linalg.norm(expected)


def test_a_contribution_can_be_held_against_its_records() -> None:
    """At the audit coordinates it is the weighted mean of what the records show."""
    made = trained()
    contribution = made.contribution()
    chosen = coordinates(spec().run_id, 0, made.layout, spec().audit.coordinates)
    shown = contribution_at_coordinates(contribution.records)
    np.testing.assert_allclose(contribution.vector[chosen], shown, rtol=1e-4, atol=1e-8)
    with pytest.raises(StateError, match="no samples"):
        contribution_at_coordinates([])


def test_contributing_changes_nothing() -> None:
    """A round that fails costs no work: accumulation goes on, and the copy handed out stays as it was."""
    made = trained()
    first = made.contribution()
    before, bits = made.state_hash, first.vector.tobytes()
    made.train(batch(9))
    assert first.vector.tobytes() == bits
    assert (made.state_hash, made.samples, len(first.records)) == (before, 10, 3)
    assert made.contribution().samples == 10


def test_nothing_trained_is_no_contribution() -> None:
    """A mean of nothing is not zero."""
    with pytest.raises(StateError, match="nothing was trained"):
        engine().contribution()


def test_apply_ends_the_epoch() -> None:
    """New base state, empty accumulation; the records of the last epochs stay a while, older ones go."""
    made = trained()
    first, records = made.state_hash, made.records
    made.apply(made.contribution().vector)
    assert (made.epoch, made.samples, made.records) == (1, 0, ())
    assert made.state_hash == made.state.hash != first
    assert made.records_of(0) == records
    assert made.work_of(0).state_hash == first
    for _ in range(3):
        made.train(batch(0))
        made.apply(made.contribution().vector)
    assert [record.number for record in made.records_of(1)] == [0]
    with pytest.raises(StateError, match="no work of epoch 0; kept: 1, 2, 3, 4"):
        made.records_of(0)


def test_a_bad_average_changes_nothing() -> None:
    """Non-finite or of the wrong size: state, accumulation and records are as before."""
    made = trained()
    before, vector = made.work, made.contribution().vector
    for bad in (np.where(np.arange(len(vector)) == 7, np.float32(np.nan), vector), vector[1:]):
        with pytest.raises(CorruptState):
            made.apply(bad)
    assert made.work == before
    assert np.array_equal(made.contribution().vector, vector)


def test_training_lowers_the_loss() -> None:
    """Thirty updates on the same few samples bring them clearly below chance."""
    optimizer = dataclasses.replace(spec().optimizer, learning_rate=0.01)
    made = Engine(spec(optimizer=optimizer), VOCAB)
    before = made.held_out_loss([batch(0)])
    assert before == pytest.approx(np.log(VOCAB), rel=0.02)
    for _ in range(30):
        made.train(batch(0))
        made.apply(made.contribution().vector)
    assert made.held_out_loss([batch(0)]) < 0.5 * before


def test_an_auditor_finds_the_same_record() -> None:
    """With the same base state, another model instance gives the record of an honest miner; with another, not."""
    made = trained()
    old = made.state
    made.apply(made.contribution().vector)
    auditor = Auditor(spec(), VOCAB)
    records = [auditor.recompute(0, old.params, batch(n, samples=n + 1)) for n in range(3)]
    assert tuple(records) == made.records_of(0)
    assert auditor.recompute(0, made.state.params, batch(1, samples=2)).gradient != records[1].gradient
    assert auditor.held_out_loss(made.state.params, [batch(5)]) == made.held_out_loss([batch(5)])


def test_records_name_what_was_trained() -> None:
    """Number, pages, samples, loss, and one gradient value a coordinate."""
    made = trained()
    record = made.records[2]
    assert (record.number, record.pages, record.samples) == (2, (20, 21), 3)
    assert len(record.gradient) == spec().audit.coordinates
    assert made.work.next_number == 3
    assert made.work.mean_loss == pytest.approx(sum(r.loss * r.samples for r in made.records) / 6)
    assert engine().work.mean_loss is None


def test_records_hash_is_canonical() -> None:
    """Sorted by number, keys sorted, no spaces; the same after a trip over the wire."""
    one = Record(number=1, pages=(5, 6), samples=2, loss=0.1, gradient=(1e-7, -0.25))
    two = Record(number=0, pages=(), samples=0, loss=3.0, gradient=())
    text = (
        '[{"gradient":[],"loss":3.0,"number":0,"pages":[],"samples":0},'
        '{"gradient":[1e-07,-0.25],"loss":0.1,"number":1,"pages":[5,6],"samples":2}]'
    )
    assert records_hash([one, two]) == hashlib.sha256(text.encode()).hexdigest()
    wired = [Record.model_validate_json(record.model_dump_json()) for record in trained().records]
    assert records_hash(wired) == records_hash(trained().records)


def test_the_same_micro_batch_counts_once() -> None:
    """A number that was trained is refused, and a batch that does not fit adds nothing."""
    made = trained()
    before = made.contribution()
    with pytest.raises(StateError, match="already trained"):
        made.train(batch(1))
    with pytest.raises(DataError):
        made.train(dataclasses.replace(batch(7), samples=0))
    assert made.contribution().samples == before.samples
    assert np.array_equal(made.contribution().vector, before.vector)


def test_seconds_are_those_of_the_clock() -> None:
    """Time is measured around the passes with the clock that was given."""
    clock = ManualClock()
    made = Engine(spec(), VOCAB, clock=clock)
    made.train(batch(0))
    assert made.work.seconds == 0.0


def test_snapshot_and_restore() -> None:
    """Going back restores base state, accumulation and records to the bit."""
    made = trained()
    snapshot, vector = made.snapshot(), made.contribution().vector
    made.train(batch(8))
    made.apply(made.contribution().vector)
    made.restore(snapshot)
    assert made.work == snapshot.works[-1]
    assert np.array_equal(made.contribution().vector, vector)
    made.train(batch(8))
    other = trained()
    other.train(batch(8))
    assert np.array_equal(made.contribution().vector, other.contribution().vector)


def test_adopting_a_state_drops_what_was_accumulated() -> None:
    """A neuron that missed a round goes on from the others' state, bit for bit; its own state changes nothing."""
    ahead, behind = trained(), trained(range(1))
    ahead.apply(ahead.contribution().vector)
    behind.adopt(ahead.state)
    assert (behind.epoch, behind.state_hash, behind.samples) == (1, ahead.state_hash, 0)
    assert behind.train(batch(0)) == ahead.train(batch(0))
    behind.adopt(ahead.state)
    assert behind.samples == 4


def test_adopting_another_model_is_refused() -> None:
    """The layout and the optimiser vectors must be those of the run."""
    made = trained()
    state = made.state
    with pytest.raises(StateError, match="another model or strategy"):
        made.adopt(dataclasses.replace(state, optimizer={"momentum": state.params}))
    assert made.samples == 6


def test_a_checkpoint_resumes_the_epoch(tmp_path: Path) -> None:
    """A killed miner continues with what it had accumulated, and ends at the same bits as one that was not."""
    first = trained(range(2))
    first.apply(first.contribution().vector)
    first.train(batch(0))
    first.save(tmp_path)
    first.train(batch(1))
    second = engine()
    assert second.load(tmp_path)
    assert second.work.samples == 4
    assert second.records_of(0) == first.records_of(0)
    second.train(batch(1))
    assert np.array_equal(second.contribution().vector, first.contribution().vector)
    average = first.contribution().vector
    for made in (first, second):
        made.apply(average)
    assert first.state_hash == second.state_hash


def test_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    """Saving again keeps the newest state, which is also a publishable model folder, and the one before."""
    made = trained()
    made.save(tmp_path)
    for number in (5, 6):
        made.train(batch(number))
        made.save(tmp_path)
        made.apply(made.contribution().vector)
        made.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PROGRESS, "state-00000001", "state-00000002"]
    state = read_state(tmp_path / "state-00000002", made.layout, spec().run_id, made.vectors, made.state_hash)
    assert np.array_equal(state.params, made.state.params)


def test_no_checkpoint_and_other_runs(tmp_path: Path) -> None:
    """Nothing there is not an error; a checkpoint of another run is."""
    assert not engine().load(tmp_path / "none")
    trained().save(tmp_path)
    with pytest.raises(StateMismatch, match="of the run"):
        Engine(spec(seed=2), VOCAB).load(tmp_path)


def test_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    """Progress of an older state is dropped, leftovers are ignored, and the next save clears them."""
    made = trained()
    made.save(tmp_path)
    old = (tmp_path / PROGRESS).read_bytes()
    made.apply(made.contribution().vector)
    made.save(tmp_path)
    (tmp_path / PROGRESS).write_bytes(old)
    (tmp_path / "state-00000002.partial").mkdir()
    (tmp_path / f"{PROGRESS}.partial").write_bytes(b"half")
    resumed = engine()
    assert resumed.load(tmp_path)
    assert (resumed.state_hash, resumed.samples) == (made.state_hash, 0)


@pytest.mark.parametrize("name", [PROGRESS, f"state-00000000/{MODEL}"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """It is not resumed, and the engine stays usable."""
    trained().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-8])
    made = engine()
    with pytest.raises(CorruptState):
        made.load(tmp_path)
    made.train(batch(0))


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    """The records in a progress file are validated like a peer's."""
    trained().save(tmp_path)
    path = tmp_path / PROGRESS
    content = path.read_bytes()
    at = content.index(b"samples")
    path.write_bytes(content[:at] + b"simples" + content[at + 7 :])
    with pytest.raises(CorruptState, match="no readable records"):
        engine().load(tmp_path)
    assert json.loads((tmp_path / "state-00000000" / "state.json").read_text())["epoch"] == 0
