"""Answering miners that ask how they were scored."""

from __future__ import annotations

from pathlib import Path

from distributed_training.scoring.combine import Evidence, ScoreBook, advance
from distributed_training.scoring.explain import score_epoch
from distributed_training.scoring.report import MAX_REPORTED, Report, ReportResponse, checked
from distributed_training.validator.report_desk import KEPT_EPOCHS, ReportDesk
from distributed_training.validator.report_file import ReportFile
from template.telemetry import MemorySink, Telemetry
from template.transport.policy import Caller
from tests.scoring.evidence import RULES, evidence

MINER = Caller(2, "hot2")


async def desk(epochs: list[list[Evidence]], file: ReportFile | None = None) -> ReportDesk:
    """Of validator 1, which scored these."""
    made, book = ReportDesk(1, file, Telemetry()), ScoreBook()
    for epoch, items in enumerate(epochs):
        after, rows = advance(book, epoch, {item.uid: item.hotkey for item in items}, items, RULES)
        made.keep(score_epoch(book, after, rows, RULES), after)
        await made.save()
        book = after
    return made


def epochs_in(answer: ReportResponse, hotkey: str = "hot2") -> list[int]:
    return [event.epoch for event, _ in checked(answer.epochs, hotkey)]


async def test_a_miner_sees_its_own_rows_only() -> None:
    """By its hotkey."""
    at = await desk([[evidence(2), evidence(3)]] * 3)
    answer = await at.answer(Report(run_id="r"), MINER)
    assert (answer.validator, answer.first, answer.last, epochs_in(answer)) == (1, 0, 2, [0, 1, 2])
    assert "hot3" not in answer.model_dump_json()


async def test_who_took_over_a_uid_is_not_told_of_the_one_before() -> None:
    """And who lost it still is."""
    at = await desk([[evidence(2)], [evidence(2, hotkey="new")]])
    assert epochs_in(await at.answer(Report(run_id="r"), Caller(2, "new")), "new") == [1]
    assert epochs_in(await at.answer(Report(run_id="r"), MINER)) == [0]


async def test_an_answer_is_bounded() -> None:
    """The newest epochs, as many as were asked for and no more than fit; older ones by `until`."""
    at = await desk([[evidence(2)]] * 40)
    assert epochs_in(await at.answer(Report(run_id="r"), MINER)) == list(range(40 - MAX_REPORTED, 40))
    assert epochs_in(await at.answer(Report(run_id="r", until=7, limit=3), MINER)) == [5, 6, 7]


async def test_memory_is_bounded() -> None:
    """The oldest epochs are dropped."""
    answer = await (await desk([[evidence(2)]] * (KEPT_EPOCHS + 5))).answer(Report(run_id="r"), MINER)
    assert (answer.first, answer.last) == (5, KEPT_EPOCHS + 4)


async def test_nothing_scored_is_nothing_to_tell() -> None:
    """Right after a start, or for a stranger."""
    answer = await (await desk([])).answer(Report(run_id="r"), MINER)
    assert (answer.first, answer.last, answer.epochs) == (None, None, ())
    assert (await (await desk([[evidence(3)]])).answer(Report(run_id="r"), MINER)).epochs == ()


async def test_what_was_scored_before_a_restart_is_answered_for(tmp_path: Path) -> None:
    """To the bit: the miner computes it again. The file does not grow for ever."""
    path = tmp_path / "reports.jsonl"
    await desk([[evidence(2), evidence(3)]] * (2 * KEPT_EPOCHS + 3), ReportFile(path, "run", KEPT_EPOCHS))
    assert len(path.read_text().splitlines()) <= 2 * KEPT_EPOCHS
    again = ReportDesk(1, ReportFile(path, "run", KEPT_EPOCHS), Telemetry())
    last = 2 * KEPT_EPOCHS + 2
    answer = await again.answer(Report(run_id="r"), MINER)
    assert (answer.first, answer.last) == (last - KEPT_EPOCHS + 1, last)
    assert epochs_in(answer) == list(range(last - MAX_REPORTED + 1, last + 1))


async def test_a_line_that_a_kill_cut_off_is_dropped_and_written_over(tmp_path: Path) -> None:
    """What stands before it is good, and the next epoch is appended to that."""
    path = tmp_path / "reports.jsonl"
    await desk([[evidence(2)]] * 3, ReportFile(path, "run", KEPT_EPOCHS))
    path.write_text(path.read_text()[:-100])
    again = ReportDesk(1, ReportFile(path, "run", KEPT_EPOCHS), Telemetry())
    assert epochs_in(await again.answer(Report(run_id="r"), MINER)) == [0, 1]
    book, rows = advance(ScoreBook(), 7, {2: "hot2"}, [evidence(2)], RULES)
    again.keep(score_epoch(ScoreBook(), book, rows, RULES), book)
    await again.save()
    third = ReportDesk(1, ReportFile(path, "run", KEPT_EPOCHS), Telemetry())
    assert epochs_in(await third.answer(Report(run_id="r"), MINER)) == [0, 1, 7]


async def test_another_run_begins_with_nothing(tmp_path: Path) -> None:
    """Its file is replaced by what is scored in this one."""
    path = tmp_path / "reports.jsonl"
    await desk([[evidence(2)]] * 3, ReportFile(path, "run", KEPT_EPOCHS))
    other = await desk([[evidence(2)]], ReportFile(path, "other", KEPT_EPOCHS))
    assert epochs_in(await other.answer(Report(run_id="r"), MINER)) == [0]
    assert len(path.read_text().splitlines()) == 1


async def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    """The validator goes on and answers from memory."""
    sink, blocked = MemorySink(), tmp_path / "file"
    blocked.write_text("")
    made = ReportDesk(1, ReportFile(blocked / "reports.jsonl", "run", KEPT_EPOCHS), Telemetry([sink]))
    book, rows = advance(ScoreBook(), 0, {2: "hot2"}, [evidence(2)], RULES)
    made.keep(score_epoch(ScoreBook(), book, rows, RULES), book)
    await made.save()
    assert epochs_in(await made.answer(Report(run_id="r"), MINER)) == [0]
    assert {record["what"] for record in sink.records} == {"reports"}
