"""How soon faking is found: closed forms against a simulation with the real draws; why it never pays."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.run import load_run
from distributed_training.scoring.detection import (
    caught_in_epoch,
    caught_within,
    epochs_to_catch,
    expected_pay,
    gain,
    penalty_needed,
    power_table,
)
from distributed_training.scoring.replay import replay_rate
from distributed_training.scoring.sampling import audit_rate, drawn
from tests.scoring.evidence import NANO
from tests.scoring.test_sampling import records

AUDIT = dataclasses.replace(NANO.audit, share=0.02, overhead=0.05)
RUNS = sorted((Path(__file__).parents[2] / "runs").glob("*.toml"))
shares = st.floats(0.001, 1)


@pytest.mark.parametrize(("faked", "count", "miners"), [(1.0, 16, 16), (0.5, 64, 4), (0.1, 200, 2), (0.25, 40, 1)])
def test_the_formula_is_what_the_draws_do(faked: float, count: int, miners: int) -> None:
    """A miner whose first records are faked, among honest ones: epochs in which one of them is recomputed."""
    rng = random.Random(3)
    reported = {uid: records(uid, count) for uid in range(miners)}
    epochs = 1500
    caught = [any(r.number < faked * count for r in drawn(reported, AUDIT, rng)[0]) for _ in range(epochs)]
    p = caught_in_epoch(faked, count, audit_rate(miners, AUDIT))
    assert sum(caught) / epochs == pytest.approx(p, abs=4 * (p * (1 - p) / epochs) ** 0.5)
    ten = [any(caught[i : i + 10]) for i in range(0, epochs, 10)]
    within = caught_within(10, p)
    assert sum(ten) / len(ten) == pytest.approx(within, abs=0.01 + 4 * (within * (1 - within) / len(ten)) ** 0.5)


def test_some_values_are_known() -> None:
    """By hand."""
    assert caught_in_epoch(1.0, 2, 0.5) == pytest.approx(0.75)
    assert caught_in_epoch(0.5, 2, 0.5) == pytest.approx(0.5)
    assert (caught_in_epoch(0.0, 9, 1.0), caught_in_epoch(0.1, 9, 1.0), caught_in_epoch(1.0, 9, 0.0)) == (0.0, 1.0, 0.0)
    assert caught_within(2, 0.5) == pytest.approx(0.75)
    assert (caught_within(0, 0.5), caught_within(1, 1.0), caught_within(5, 0.0)) == (0.0, 1.0, 0.0)
    assert (epochs_to_catch(0.5, 0.75), epochs_to_catch(0.0, 0.9), epochs_to_catch(1.0, 0.9)) == (2, None, 1)
    assert (penalty_needed(16, 0.05 / 16), penalty_needed(5, 1.0), penalty_needed(5, 0.0)) == (20, 0, None)
    with pytest.raises(ValueError, match="share"):
        caught_in_epoch(1.5, 1, 0.1)


@given(shares, st.integers(1, 5000), st.floats(1e-4, 1.0))
def test_with_the_penalty_that_is_needed_no_share_of_faking_pays(share: float, count: int, chance: float) -> None:
    """The whole inequality, not only at the end where it is solved; and one epoch less would not do."""
    needed = penalty_needed(count, chance)
    assert needed is not None
    assert gain(share, count, chance, needed) <= 1e-9
    if needed:
        assert gain(1.0, count, chance, needed - 1) > 0


@given(shares, st.integers(1, 500), st.floats(1e-3, 1.0), st.integers(0, 50))
def test_more_faking_and_more_auditing_are_found_sooner(share: float, count: int, chance: float, penalty: int) -> None:
    """Monotone in everything that it depends on; pay falls with the penalty."""
    p = caught_in_epoch(share, count, chance)
    assert caught_in_epoch(share / 2, count, chance) <= p <= caught_in_epoch(share, count + 1, chance)
    assert p <= caught_in_epoch(share, count, min(1.0, 2 * chance))
    assert caught_within(3, p) <= caught_within(4, p) + 1e-12
    assert expected_pay(share, count, chance, penalty + 1) <= expected_pay(share, count, chance, penalty) <= 1


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_cheating_does_not_pay_in_any_run_of_the_repository(path: Path) -> None:
    """With one validator alone, 16 miners, and an epoch that ends as soon as it has enough samples."""
    run = load_run(path)
    miners = min(16, run.data.max_uids)
    usual = {"nano": 8, "nano-overlap": 8, "nano-diloco": 8, "gpt2-fineweb": 22}[run.name]  # samples of a micro-batch
    count = run.epoch.target_samples / miners / usual
    if run.audit.replay is None:
        needed = penalty_needed(count, audit_rate(miners, run.audit))
    else:  # of all stretches one is replayed, so that faking a part is found that much less often, in proportion
        reported = {uid: records(uid, int(count)) for uid in range(miners)}
        needed = penalty_needed(1, replay_rate(reported, run.audit, run.audit.replay))
    assert needed is not None
    assert run.scoring.penalty_epochs >= needed


def test_the_table_says_how_soon_each_share_is_found() -> None:
    """For the default budget, 64 records a miner and 16 of them: one line a share."""
    table = power_table(64, 16, AUDIT, 20)
    assert [row.share for row in table] == [1, 0.5, 0.25, 0.1]
    assert table[0].in_epoch == pytest.approx(0.1815, abs=1e-3)
    assert (table[0].epochs_95, table[0].epochs_99) == (15, 23)
    assert [row.in_epoch for row in table] == sorted((row.in_epoch for row in table), reverse=True)
    assert table[0].pay < 0.2
