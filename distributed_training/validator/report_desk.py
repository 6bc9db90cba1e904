"""What a validator keeps to answer miners that ask why they are paid what they are paid: the last epochs' rows."""

from __future__ import annotations

import asyncio
from collections import deque

from distributed_training.events import NotSaved
from distributed_training.scoring.combine import ScoreBook
from distributed_training.scoring.explain import EpochScored
from distributed_training.scoring.report import Report, ReportResponse, reported, total_of
from distributed_training.validator.report_file import ReportFile
from template.telemetry import Telemetry
from template.transport.policy import Caller

KEPT_EPOCHS = 64


class ReportDesk:
    """Answers `Report` for validator `uid`: a caller sees its own rows and nobody else's.

    What is in `file` from before is answered for as well; without a file nothing outlives a restart.
    """

    def __init__(self, uid: int, file: ReportFile | None, telemetry: Telemetry) -> None:
        self._uid = uid
        self._file = file
        self._telemetry = telemetry
        self._kept: deque[tuple[EpochScored, float]] = deque(maxlen=KEPT_EPOCHS)
        if file is not None:
            try:
                self._kept.extend(file.load())
            except OSError as error:
                telemetry.emit(NotSaved(what="reports", reason=f"those of before cannot be read: {error}"))

    def keep(self, event: EpochScored, book: ScoreBook) -> None:
        """Take in an epoch that was scored, and the book after it."""
        self._kept.append((event, total_of(book)))

    async def save(self) -> None:
        """Write the epoch that was taken in last. A disk that does not take it is told."""
        if self._file is None:
            return
        try:
            await asyncio.to_thread(self._file.append, *self._kept[-1], tuple(self._kept))
        except OSError as error:
            self._telemetry.emit(NotSaved(what="reports", reason=str(error)))

    async def answer(self, request: Report, caller: Caller) -> ReportResponse:
        """The caller's rows by its hotkey: who took over a uid is not told of the one before."""
        kept = tuple(self._kept)
        rows = [
            (event, row, total)
            for event, total in kept
            if request.until is None or event.epoch <= request.until
            for row in event.rows
            if row.evidence.hotkey == caller.hotkey
        ]
        return ReportResponse(
            validator=self._uid,
            first=kept[0][0].epoch if kept else None,
            last=kept[-1][0].epoch if kept else None,
            epochs=tuple(reported(event, row, total) for event, row, total in rows[-request.limit :]),
        )
