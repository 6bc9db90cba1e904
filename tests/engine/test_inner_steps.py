"""Miners that make steps of their own: what they contribute, what outlives an epoch or a restart, their marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distributed_training.averaging.codecs.registry import codec_named
from distributed_training.engine.checkpoint import PROGRESS
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Engine
from distributed_training.engine.inner_steps import Standing, step
from distributed_training.engine.records import records_hash
from distributed_training.engine.replica import Replica
from distributed_training.model.build import build
from distributed_training.model.layout import Layout, flatten
from distributed_training.run import RunSpec
from distributed_training.strategies.base import LocalState
from template.errors import StateError
from tests.engine.tiny import DECAYING, GPT2, LENGTH, VOCAB, batch
from tests.strategies.live import live

STEPS = 5
PLAIN = {"outer_learning_rate": 1.0, "outer_momentum": 0.0}


def spec(name: str = "diloco", **changes: object) -> RunSpec:
    return live(name, **{"optimizer": DECAYING, **changes})


def trained(run: RunSpec, count: int = STEPS, first: int = 0) -> Engine:
    made = Engine(run, VOCAB)
    train(made, count, first)
    return made


def train(engine: Engine, count: int = STEPS, first: int = 0) -> None:
    for number in range(first, first + count):
        engine.train(batch(number, samples=1 + number % 3))


def single_process(epochs: int) -> np.ndarray:
    """A plain loop: torch's clipping and AdamW, the rate set once an epoch."""
    module = build(GPT2, VOCAB, LENGTH, seed=1)
    matrices, vectors = ([p for p in module.parameters() if (p.ndim > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-6)
    for epoch in range(epochs):
        for number in range(STEPS):
            example = batch(number, samples=1 + number % 3)
            optimizer.zero_grad()
            logits = module(input_ids=torch.from_numpy(example.input_ids)).logits.flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(example.labels).flatten()).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = {0: 1e-3, 1: 2e-3, 2: 3e-3}[epoch]
            optimizer.step()
    return flatten(module)


def test_one_miner_with_rate_one_is_its_inner_optimiser() -> None:
    """Over three epochs the state follows a plain loop: moments go on from epoch to epoch."""
    engine = Engine(spec(hyperparameters=PLAIN), VOCAB)
    for _ in range(3):
        train(engine)
        engine.apply(engine.contribution().vector)
    expected = single_process(3)
    assert np.linalg.norm(engine.state.params - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(engine.state.params - single_process(2)) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["diloco", "muloco", "fedavg", "sparseloco"])
def test_a_contribution_is_what_the_steps_have_moved(name: str) -> None:
    """Base - local; another miner at the same base with the same pages arrives at the same bits, all at one state."""
    one, two = trained(spec(name)), trained(spec(name))
    base = one.state.params
    contribution = one.contribution()
    standing = one.snapshot().standings[-1]
    assert np.array_equal(contribution.vector, base - standing.params)
    assert contribution.samples == sum(1 + number % 3 for number in range(STEPS))
    assert np.array_equal(contribution.vector, two.contribution().vector)
    assert np.linalg.norm(contribution.vector) > 1e-3
    for engine in (one, two):
        engine.apply(contribution.vector)
    assert one.state_hash == two.state_hash


def test_contributing_changes_nothing() -> None:
    """A round that fails costs no work: the next step starts where the last one ended."""
    asked, unasked = trained(spec()), trained(spec())
    first = asked.contribution()
    bits = first.vector.tobytes()
    for engine in (asked, unasked):
        train(engine, 1, first=9)
    assert np.array_equal(asked.contribution().vector, unasked.contribution().vector)
    assert first.vector.tobytes() == bits
    assert asked.contribution().marks == unasked.contribution().marks


def test_marks_say_where_the_steps_led_to() -> None:
    """One before the first step, one after each stretch, one at the end; the records' hash covers them."""
    engine = trained(spec())
    marks, kept = engine.contribution().marks, {s.hash: s for s in engine.snapshot().standings}
    assert [mark.after for mark in marks] == [mark.steps for mark in marks] == [0, 2, 4, 5]
    assert marks[0].params == engine.state.model_hash
    chosen = coordinates(spec().run_id, 0, engine.layout, spec().audit.coordinates)
    for mark in marks:
        moved = engine.state.params - kept[mark.state].params
        assert mark.moved == tuple(moved[chosen].tolist())
        assert (mark.params, mark.inner) == (kept[mark.state].model_hash, kept[mark.state].vectors_hash)
    hashes = {records_hash(engine.records, shown) for shown in (marks, marks[:-1], ())}
    assert len(hashes) == 3
    engine.apply(engine.contribution().vector)
    train(engine, 1)
    assert (engine.work.marks[0].steps, engine.work.marks[0].inner) == (STEPS, marks[-1].inner)


def test_marked_states_are_kept_as_long_as_records() -> None:
    """A validator asks after the round; older ones go. Those on disk need not be in memory."""
    engine = Engine(spec(), VOCAB)
    for _ in range(5):
        train(engine)
        engine.apply(engine.contribution().vector)
    kept = {mark.state for epoch in (2, 3, 4) for mark in engine.work_of(epoch).marks}
    assert {standing.hash for standing in engine.snapshot().standings} == engine.snapshot().marked == kept
    standings = engine.snapshot().standings
    engine.kept_elsewhere(standings)
    assert (engine.snapshot().standings, engine.snapshot().marked) == ((), kept)


def test_who_goes_back_an_epoch_can_still_show_what_it_committed_to() -> None:
    """A miner that takes the others for the majority too early, and follows them again, has not lost its states."""
    engine = trained(spec())
    before, marks = engine.state, engine.contribution().marks
    engine.apply(engine.contribution().vector)
    after = engine.state
    for state in (before, after):
        engine.adopt(state)
    assert {mark.state for mark in marks} <= engine.snapshot().marked
    assert {standing.hash for standing in engine.snapshot().standings} == engine.snapshot().marked


@pytest.mark.parametrize("name", ["diloco", "muloco", "fedavg"])
def test_a_restart_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    """In the middle of an epoch and between two: parameters, moments, steps, marks and what they name."""
    first = trained(spec(name))
    for middle in (True, False):
        if not middle:
            first.apply(first.contribution().vector)
        first.save(tmp_path)
        second = Engine(spec(name), VOCAB)
        assert second.load(tmp_path)
        assert second.work == first.work
        for state_hash in first.snapshot().marked:
            assert second.kept_standing(tmp_path, state_hash) is not None
        for engine in (first, second):
            train(engine, 2, first=7)
        assert np.array_equal(first.contribution().vector, second.contribution().vector)
        assert first.contribution().marks == second.contribution().marks


def test_who_watches_keeps_nothing(tmp_path: Path) -> None:
    """A validator makes no steps: its checkpoint has no vectors of its own, and comes back."""
    engine = Engine(spec(), VOCAB)
    engine.save(tmp_path)
    assert (tmp_path / PROGRESS).stat().st_size < 4096
    again = Engine(spec(), VOCAB)
    assert again.load(tmp_path)
    train(again)
    assert np.array_equal(again.contribution().vector, trained(spec()).contribution().vector)


def test_an_adopted_state_begins_with_an_empty_inner_state() -> None:
    """What was trained towards another state is dropped, moments included; the same hash drops nothing."""
    other, behind = trained(spec()), trained(spec(), 2)
    other.apply(other.contribution().vector)
    behind.adopt(other.state)
    fresh = Engine(spec(), VOCAB)
    fresh.adopt(other.state)
    for engine in (behind, fresh):
        train(engine)
    assert behind.work.marks == fresh.work.marks
    assert behind.work.marks[0].steps == 0
    behind.adopt(other.state)
    assert behind.samples > 0


def test_sparse_error_feedback_decays() -> None:
    """What SparseLoCo owes counts 0.95 times in the next epoch."""
    engine = trained(spec("sparseloco"))
    codec, owed = codec_named("topk32-int2-block512"), 0.0
    for _ in range(2):
        attempt, vector = engine.attempt(), engine.contribution().vector
        assert attempt is not None
        sent = codec.decode(attempt.encode(codec, 0, vector), vector.size)
        expected = vector + np.float32(0.95) * owed - sent
        engine.apply(vector, attempt)
        residual = engine.snapshot().residual
        assert residual is not None
        np.testing.assert_allclose(residual, expected, atol=1e-6)
        owed = residual.copy()
        train(engine)


def test_a_state_hash_knows_nothing_of_inner_states() -> None:
    """Miners whose moments differ stand at one state after an average."""
    one, two = trained(spec()), trained(spec(), 3, first=20)
    average = one.contribution().vector
    for engine in (one, two):
        engine.apply(average)
    assert one.state_hash == two.state_hash
    assert set(one.state.optimizer) == {"outer_momentum"}
    for engine in (one, two):
        train(engine, 1)
    assert one.work.marks[0].params == two.work.marks[0].params
    assert one.work.marks[0].inner != two.work.marks[0].inner


class Leap:
    """An inner optimiser that goes too far."""

    spec = DECAYING

    def init(self, layout: Layout, device: torch.device) -> dict[str, torch.Tensor]:
        return {}

    def update(self, state: LocalState, gradient: torch.Tensor, number: int) -> LocalState:
        return state.having(state.params + torch.inf)


def test_steps_to_nowhere_are_refused() -> None:
    """One that leads to infinite parameters is an error, named by its micro-batch."""
    replica = Replica(spec(), VOCAB)
    standing = Standing(Leap(), replica.layout, torch.device("cpu"))
    at = standing.empty(np.zeros(replica.layout.size, dtype=np.float32))
    with pytest.raises(StateError, match="micro-batch 3: the inner step leads to parameters that are not finite"):
        step(replica, Leap(), at, batch(3), torch.arange(2))
