"""Verified samples: unique, assigned, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol import Record
from distributed_training.scoring.steps import MicroBatch, Steps, verified_samples
from tests.scoring.evidence import record

ASSIGNED = {k: MicroBatch(pages=(2 * k, 2 * k + 1), samples=8) for k in range(6)}


def of(number: int, samples: int = 8, **fields: object) -> Record:
    return record(number=number, samples=samples, **{"pages": (2 * number, 2 * number + 1), **fields})


records = st.lists(st.builds(of, st.integers(0, 9), st.integers(0, 20)), max_size=12)


def test_counts_assigned_samples() -> None:
    """Each assigned micro-batch counts the samples it reports."""
    assert verified_samples([of(0), of(3, 7)], ASSIGNED) == Steps(samples=15, counted=2)


def test_the_same_number_counts_once() -> None:
    """A record sent twice is one record."""
    assert verified_samples([of(1), of(1), of(1)], ASSIGNED) == Steps(samples=8, counted=1, duplicate=2)


def test_the_same_pages_count_once() -> None:
    """An assignment that wraps around the corpus does not pay for a page twice."""
    wrapped = {0: MicroBatch(pages=(0, 1), samples=8), 1: MicroBatch(pages=(1, 0), samples=8)}
    both = [of(0), of(1, pages=(1, 0))]
    assert verified_samples(both, wrapped) == Steps(samples=8, counted=1, duplicate=1)


def test_off_assignment_counts_nothing() -> None:
    """Somebody else's pages, and numbers that were never assigned, are worth nothing."""
    stolen = [of(0, pages=(4, 5)), of(77)]
    assert verified_samples(stolen, ASSIGNED) == Steps(samples=0, off_assignment=2)


def test_samples_are_cut_to_what_the_pages_hold() -> None:
    """A claim of a million samples in two pages is worth what two pages hold."""
    assert verified_samples([of(0, 1_000_000)], ASSIGNED).samples == 8


def test_failed_audits_count_nothing() -> None:
    """A record whose audit failed is not work, whichever copy of it came first."""
    assert verified_samples([of(0), of(1), of(1)], ASSIGNED, {1}) == Steps(samples=8, counted=1, failed=2)


@given(records, st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(reported: list[Record], random: object) -> None:
    """The same records in another order are the same steps."""
    shuffled = list(reported)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert verified_samples(shuffled, ASSIGNED) == verified_samples(reported, ASSIGNED)


@given(records)
def test_never_more_than_the_assignment_holds(reported: list[Record]) -> None:
    """However many records are reported, the assignment bounds what they are worth; every record is accounted for."""
    steps = verified_samples(reported, ASSIGNED)
    assert steps.samples <= sum(batch.samples for batch in ASSIGNED.values())
    assert steps.counted + steps.off_assignment + steps.duplicate + steps.failed == len(reported)
