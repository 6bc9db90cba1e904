"""When a service is tried again, and what a refusal asks for."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.services.retry import RetryPolicy, is_transient, retry_after


def test_backoff_doubles_up_to_its_limit() -> None:
    """Between half and all of 1, 2, 4, 5, 5 seconds, then no more."""
    policy = RetryPolicy(tries=6, first_delay=1, longest_delay=5)
    assert [policy.delay(tried, 0.0) for tried in range(1, 7)] == [0.5, 1.0, 2.0, 2.5, 2.5, None]
    assert [policy.delay(tried, 1.0) for tried in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


@given(tried=st.integers(1, 99), jitter=st.floats(0, 1, exclude_max=True), asked=st.none() | st.floats(0, 600))
def test_a_wait_is_never_shorter_than_asked_nor_longer_than_allowed(
    tried: int, jitter: float, asked: float | None
) -> None:
    """Bounded, whatever the server says."""
    policy = RetryPolicy(tries=100, longest_delay=60, longest_retry_after=300)
    wait = policy.delay(tried, jitter, asked)
    if asked is not None and asked > 300:
        assert wait is None
    else:
        assert wait is not None
        assert (asked or 0) <= wait <= 300


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=3;t=55'}, None),
    ],
)
def test_what_a_refusal_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    """Both forms of Retry-After, and the rate limit that the Hugging Face Hub states when it is used up."""
    assert retry_after(headers, 1_000_000.0) == seconds


def test_which_answers_may_be_better_next_time() -> None:
    """Too many, too early, too slow, and the server's own faults; never a plain refusal."""
    assert [status for status in range(100, 600) if is_transient(status)] == [408, 425, 429, *range(500, 600)]
