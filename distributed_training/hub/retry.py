"""When to try a hub again, and how long to wait: pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from template.errors import ConfigurationError

_RATE_LIMIT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)')


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
            raise ConfigurationError("hub tries must lie between 1 and 100")
        if not 0 < self.first_delay <= self.longest_delay:
            raise ConfigurationError("hub first_delay must be positive and at most longest_delay")
        if self.longest_retry_after < 0:
            raise ConfigurationError("hub longest_retry_after must not be negative")

    def delay(self, tried: int, jitter: float, retry_after: float | None = None) -> float | None:
        """Seconds to wait after `tried` failures (from 1), None to give up. `jitter` lies in [0, 1)."""
        if tried >= self.tries:
            return None
        whole = min(self.longest_delay, self.first_delay * 2.0 ** (tried - 1))
        wait = whole * (0.5 + 0.5 * jitter)
        if retry_after is None:
            return wait
        return None if retry_after > self.longest_retry_after else max(wait, retry_after)


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
