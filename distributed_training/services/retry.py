"""When a service on the network is tried again, and how long to wait before: pure.

A client's call is one try. It returns, raises `Transient` (another try may succeed), or an error of this project's own
(another try gives the same); data/store.py and hub/attempts.py count the tries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from template.errors import ConfigurationError

_TRANSIENT = frozenset({408, 425, 429})
_RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)')


class Transient(Exception):
    """This try failed and the next may not. `retry_after`: seconds that the other side asks to wait."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off: before try n+1, between half and all of `first_delay * 2**(n-1)`, at most `longest_delay`.

    What the server asks for in Retry-After is honoured up to `longest_retry_after`; if it asks for more, giving up
    is better than coming back early. All in seconds.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    tries: int = 6
    first_delay: float = 1.0
    longest_delay: float = 60.0
    longest_retry_after: float = 300.0

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= 100:
            raise ConfigurationError("tries must lie between 1 and 100")
        if not 0 < self.first_delay <= self.longest_delay:
            raise ConfigurationError("first_delay must be positive and at most longest_delay")
        if self.longest_retry_after < 0:
            raise ConfigurationError("longest_retry_after must not be negative")

    def delay(self, tried: int, jitter: float, retry_after: float | None = None) -> float | None:
        """Seconds to wait after `tried` failures (from 1), None to give up. `jitter` lies in [0, 1)."""
        if tried >= self.tries:
            return None
        whole = min(self.longest_delay, self.first_delay * 2.0 ** (tried - 1))
        wait = whole * (0.5 + 0.5 * jitter)
        if retry_after is None:
            return wait
        return None if retry_after > self.longest_retry_after else max(wait, retry_after)


def is_transient(status: int) -> bool:
    """Whether an answer of this HTTP status says that the same request may do better later, whatever the service."""
    return status in _TRANSIENT or status >= 500


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a refusal asks to wait, from `Retry-After` (number or date) or an exhausted `RateLimit`.

    `headers` has lower-case names; `now` is in seconds since the Unix epoch. None if nothing readable is asked.
    """
    asked = headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    if asked:
        return _seconds_until(asked, now)
    limit = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


def _seconds_until(date: str, now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None  # neither form of RFC 9110: our own back-off holds
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)
