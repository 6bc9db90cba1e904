"""What a validator keeps to answer miners that ask why they are paid what they are paid: the last epochs' rows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from distributed_training.scoring.combine import ScoreBook
from distributed_training.scoring.explain import EpochScored
from distributed_training.scoring.report import Report, ReportResponse, reported, total_of
from template.transport.policy import Caller

KEPT_EPOCHS = 64


@dataclass(frozen=True)
class _Kept:
    event: EpochScored
    total: float


class ReportDesk:
    """Answers `Report` for validator `uid`: a caller sees its own rows and nobody else's. Empty after a restart."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._kept: deque[_Kept] = deque(maxlen=KEPT_EPOCHS)

    def keep(self, event: EpochScored, book: ScoreBook) -> None:
        """Take in an epoch that was scored, and the book after it."""
        self._kept.append(_Kept(event, total_of(book)))

    async def answer(self, request: Report, caller: Caller) -> ReportResponse:
        """The caller's rows by its hotkey: who took over a uid is not told of the one before."""
        kept = tuple(self._kept)
        rows = [
            (item, row)
            for item in kept
            if request.until is None or item.event.epoch <= request.until
            for row in item.event.rows
            if row.evidence.hotkey == caller.hotkey
        ]
        return ReportResponse(
            validator=self._uid,
            first=kept[0].event.epoch if kept else None,
            last=kept[-1].event.epoch if kept else None,
            epochs=tuple(reported(item.event, row, item.total) for item, row in rows[-request.limit :]),
        )
