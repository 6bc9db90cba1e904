"""What is sealed, and that nothing else can be revealed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from distributed_training.arena.contest.submission import (
    COMMITMENT,
    Submission,
    check_source,
    committed_round,
    largest_reveal,
    new_salt,
    opened,
    revealed,
)
from template.chain.commitments import LONGEST
from template.errors import SubmissionRefused

MINE = Submission(contest_id="nano-1", netuid=3, round=7, hotkey="5Mine", salt=b"s" * 32, source="x = 'ü'\n".encode())


def test_what_was_committed_can_be_revealed() -> None:
    """Whole, from the JSON, and the commitment says for which round."""
    assert opened(revealed(MINE).encode(), MINE.commitment, 100) == MINE
    assert committed_round(MINE.commitment) == 7
    assert len(MINE.commitment) == COMMITMENT <= LONGEST


@pytest.mark.parametrize(
    "change",
    [
        {"hotkey": "5Thief"},  # who copies the hash of another cannot reveal it as its own
        {"contest_id": "nano-2"},
        {"netuid": 4},
        {"round": 8},
        {"salt": b"t" * 32},
        {"source": b"x = 2\n"},
    ],
)
def test_everything_is_bound(change: dict[str, object]) -> None:
    """Another hotkey, contest, subnet, round, salt or source is not what was committed."""
    other = dataclasses.replace(MINE, **change)  # type: ignore[arg-type]
    with pytest.raises(SubmissionRefused) as refused:
        opened(revealed(other).encode(), MINE.commitment, 100)
    assert refused.value.reason == "not_committed"


def test_parts_do_not_run_together() -> None:
    """Moving a letter from one part to the next makes another hash."""
    moved = dataclasses.replace(MINE, hotkey="5Min", salt=b"e" + b"s" * 32)
    assert moved.digest != MINE.digest


def test_salts_differ() -> None:
    """Or a source that others can guess would be recognised."""
    assert len({new_salt() for _ in range(10)}) == 10
    assert len(new_salt()) == 32


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"x" * 101, "too_large"),
        (b"\xff\xfe", "not_text"),
        (b"def f(:\n", "not_python"),
        (b"\x00", "not_python"),
        (b"(" * 90, "not_python"),
    ],
)
def test_sources_that_are_refused(source: bytes, reason: str) -> None:
    """With a word for the reason."""
    with pytest.raises(SubmissionRefused) as refused:
        check_source(source, 100)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', "\xff", "[" * 5000, '{"version": 2}'],
)
def test_what_is_no_reveal(text: str) -> None:
    """Is refused as malformed, whatever it is."""
    with pytest.raises(SubmissionRefused) as refused:
        opened(text.encode("latin-1"), MINE.commitment, 100)
    assert refused.value.reason == "malformed"


def test_a_short_salt_is_malformed() -> None:
    """It could be guessed together with the source."""
    found = json.loads(revealed(MINE)) | {"salt": "00"}
    with pytest.raises(SubmissionRefused, match="salt"):
        opened(json.dumps(found).encode(), MINE.commitment, 100)


def test_the_largest_source_fits_into_a_reveal() -> None:
    """However its letters are written in JSON."""
    worst = dataclasses.replace(MINE, source=b"\x1f" * 4000, hotkey="5" * 48)
    assert len(revealed(worst).encode()) <= largest_reveal(4000)


@pytest.mark.parametrize("data", [b"", b"hello", b"arena\x01" + b"0" * 35, b"arena\x02" + b"0" * 36])
def test_other_commitments_are_nobody_s_business(data: bytes) -> None:
    """Hotkeys publish all sorts of things."""
    assert committed_round(data) is None
