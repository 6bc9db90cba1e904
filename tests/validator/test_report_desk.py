"""Answering miners that ask how they were scored."""

from __future__ import annotations

from distributed_training.scoring.combine import Evidence, ScoreBook, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.report import MAX_REPORTED, Report, ReportResponse, checked
from distributed_training.validator.report_desk import KEPT_EPOCHS, ReportDesk
from template.transport.policy import Caller
from tests.scoring.evidence import RULES, evidence

MINER = Caller(2, "hot2")


def desk(epochs: list[list[Evidence]]) -> ReportDesk:
    """Of validator 1, which scored these."""
    made, book = ReportDesk(1), ScoreBook()
    for epoch, items in enumerate(epochs):
        after, rows = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
        made.keep(score_epoch(book, after, rows, RULES), after)
        book = after
    return made


def epochs_in(answer: ReportResponse, hotkey: str = "hot2") -> list[int]:
    return [event.epoch for event, _ in checked(answer.epochs, hotkey)]


async def test_a_miner_sees_its_own_rows_only() -> None:
    """By its hotkey."""
    at = desk([[evidence(2), evidence(3)]] * 3)
    answer = await at.answer(Report(run_id="r"), MINER)
    assert (answer.validator, answer.first, answer.last, epochs_in(answer)) == (1, 0, 2, [0, 1, 2])
    assert "hot3" not in answer.model_dump_json()


async def test_who_took_over_a_uid_is_not_told_of_the_one_before() -> None:
    """And who lost it still is."""
    at = desk([[evidence(2)], [evidence(2, hotkey="new")]])
    assert epochs_in(await at.answer(Report(run_id="r"), Caller(2, "new")), "new") == [1]
    assert epochs_in(await at.answer(Report(run_id="r"), MINER)) == [0]


async def test_an_answer_is_bounded() -> None:
    """The newest epochs, as many as were asked for and no more than fit; older ones by `until`."""
    at = desk([[evidence(2)]] * 40)
    assert epochs_in(await at.answer(Report(run_id="r"), MINER)) == list(range(40 - MAX_REPORTED, 40))
    assert epochs_in(await at.answer(Report(run_id="r", until=7, limit=3), MINER)) == [5, 6, 7]


async def test_memory_is_bounded() -> None:
    """The oldest epochs are dropped."""
    answer = await desk([[evidence(2)]] * (KEPT_EPOCHS + 5)).answer(Report(run_id="r"), MINER)
    assert (answer.first, answer.last) == (5, KEPT_EPOCHS + 4)


async def test_nothing_scored_is_nothing_to_tell() -> None:
    """Right after a start, or for a stranger."""
    answer = await desk([]).answer(Report(run_id="r"), MINER)
    assert (answer.first, answer.last, answer.epochs) == (None, None, ())
    assert (await desk([[evidence(3)]]).answer(Report(run_id="r"), MINER)).epochs == ()
