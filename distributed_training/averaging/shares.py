"""Who reduces how much: shares that let the slowest member of a butterfly end as early as possible. Pure.

One of m contributors in a group of n, with share s of a vector of one value, sends its parts of the others' shares and
the average of its own to everybody, and receives their parts of its share and the average of theirs:

    sent      = (1 - s) part + (n - 1) s average       bytes, over its `up`
    received  = (m - 1) s part + (1 - s) average       bytes, over its `down`

Both times rise with s, so within a time T each member can take a largest share; the smallest T in which these add up
to one, and in which everybody could do without any share what it does anyway, is the optimum. Of the shares that keep
it the most equal ones are taken: a member whose line is slow as such reduces nothing, and then nothing is gained by
giving most of the rest to the fastest. (In a group of two, or with one contributor, a larger share may cost less; then
the shares are sound, but not the best.)

What a line can do is measured by the others, as rates of single streams, as only their ratios matter: `up` is the
median of what they received from a member. What they sent to it says more of their own lines; `down` is therefore only
known where most of them sent to it slower than they sent to others, and limits nobody otherwise. Rates are smoothed
over rounds in small steps, and no share is beyond MOST times an equal one: a reducer decides alone on its share, and
one wrong number must neither flood nor starve a member.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from distributed_training.averaging.addresses import is_relayed
from distributed_training.protocol import Member, Transfer

MOST = 2.0  # times an equal share of what the miners reduce
SLOWER = 0.7  # times what a sender has for others: then the receiver is what limits a stream
LEAST_BYTES = 1 << 16  # of a transfer: shorter ones measure the delay of the line, and buffers
STEP = 4.0  # a rate counts as at most so many times, or this part of, what was known before
PULL = 0.3  # how far a new rate moves the known one, in logarithms
ROUNDS_OF_SEARCH = 100  # halvings: beyond the precision of floats


@dataclass(frozen=True)
class Rate:
    """Bytes per second and stream; None where nobody measured it, infinite where the line limits nobody."""

    up: float | None
    down: float | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A contributor's bytes per second, and whether it may reduce."""

    up: float
    down: float
    reduces: bool = True


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a value takes on the wire, in bytes, as a part and as an average, and the size of the group."""

    part: float
    average: float
    members: int
    contributors: int


def dialable(addresses: Sequence[str]) -> bool:
    """Whether anybody can open a connection to a peer; else it is a client, reached through relays if at all."""
    return any(not is_relayed(address) for address in addresses)


def reported(reports: Mapping[int, Sequence[Transfer]]) -> dict[int, Rate]:
    """What the members (reports by uid) measured of each other: the median by uid, of an even number the lower one.

    What a member says of itself does not count, and of what it says of another only the first word.
    """
    up: dict[int, list[float]] = defaultdict(list)
    down: dict[int, list[float]] = defaultdict(list)
    for reporter, transfers in reports.items():
        first = {transfer.uid: transfer for transfer in reversed(transfers) if transfer.uid != reporter}
        sent = {uid: _rate(seen.bytes_sent, seen.seconds_sending) for uid, seen in first.items()}
        for uid, seen in first.items():
            up[uid] += _known([_rate(seen.bytes_received, seen.seconds_receiving)])
            down[uid] += _known([_limit(uid, sent)])
    limits = {uid: statistics.median_high(seen) for uid, seen in down.items() if seen}
    return {uid: Rate(_middle(up[uid]), limits.get(uid)) for uid in up}


def smoothed(known: Mapping[str, Rate], seen: Mapping[str, Rate]) -> dict[str, Rate]:
    """What is known by hotkey after another round; who was unknown starts from the median of what was seen."""
    ups, downs = _middle([r.up for r in seen.values()]), _middle([r.down for r in seen.values()])
    nothing = Rate(None, None)
    return {
        hotkey: Rate(
            _moved(known.get(hotkey, nothing).up, seen.get(hotkey, nothing).up, ups),
            _moved(known.get(hotkey, nothing).down, seen.get(hotkey, nothing).down, downs),
        )
        for hotkey in {**known, **seen}
    }


def shared(
    members: Sequence[Member],
    reducing: Collection[int],
    rates: Mapping[str, Rate],
    validator_share: float,
    sizes: tuple[float, float],
) -> tuple[Member, ...]:
    """The members with their shares of the next round; 0 for all that are not in `reducing` or that nobody can dial.

    Where nobody can be dialled, those in `reducing` have to do it nevertheless, through their relays.

    Args:
        rates: by hotkey; who is not in it counts as the median.
        validator_share: of an equal share, for each member that does not contribute.
        sizes: bytes that a value takes as a part and as an average.

    Returns:
        The members in their order; empty if nobody could reduce.
    """
    willing = [m for m in members if m.uid in reducing]
    able = [m for m in willing if dialable(m.peer.addresses)] or willing
    if not able:
        return ()
    fixed = {m.uid: validator_share / len(members) for m in able if not m.contributes}
    miners = [m for m in members if m.contributes]
    if any(m in miners for m in able):
        traffic = Traffic(part=sizes[0], average=sizes[1], members=len(members), contributors=len(miners))
        lines = _lines(miners, [m in able for m in miners], rates)
        balanced = balance(lines, traffic, 1 - math.fsum(fixed.values()))
        shares = fixed | {m.uid: share for m, share in zip(miners, balanced, strict=True)}
    else:
        shares = dict.fromkeys(fixed, 1.0)
    total = math.fsum(shares.values())
    return tuple(m.model_copy(update={"share": shares.get(m.uid, 0.0) / total}) for m in members)


def balance(lines: Sequence[Line], traffic: Traffic, rest: float = 1.0) -> tuple[float, ...]:
    """The shares that sum to `rest` and let the slowest of `lines`, the contributors, end as early as possible.

    At least one of them reduces; who does not has a share of 0.
    """
    most = MOST * rest / sum(line.reduces for line in lines)

    def largest(seconds: float) -> list[float]:
        return [min(most, _largest(line, traffic, seconds)) if line.reduces else 0.0 for line in lines]

    in_any_case = max(max(traffic.part / line.up, traffic.average / line.down) for line in lines)
    needed = _smallest(lambda seconds: math.fsum(largest(seconds)) >= rest, _longest(lines, traffic, most))
    bounds = largest(max(needed, in_any_case))
    level = _smallest(lambda level: math.fsum(min(level, bound) for bound in bounds) >= rest, most)
    shares = [min(level, bound) for bound in bounds]
    total = math.fsum(shares)
    return tuple(share * rest / total for share in shares)


def _smallest(enough: Callable[[float], bool], high: float) -> float:
    """The smallest number in [0, high] for which `enough` holds, as it does for all above it."""
    low = 0.0
    for _ in range(ROUNDS_OF_SEARCH):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _longest(lines: Sequence[Line], traffic: Traffic, most: float) -> float:
    """A time in which every line is done with a share of `most`."""
    sent = traffic.part + traffic.members * traffic.average * most
    received = traffic.average + traffic.contributors * traffic.part * most
    return max(max(sent / line.up, received / line.down) for line in lines)


def _largest(line: Line, traffic: Traffic, seconds: float) -> float:
    """The largest share, possibly infinite, with which the line is done in time; 0 if it is not in any case."""
    up = (traffic.part, (traffic.members - 1) * traffic.average - traffic.part, line.up)
    down = (traffic.average, (traffic.contributors - 1) * traffic.part - traffic.average, line.down)
    return max(0.0, min(_until(seconds, *up), _until(seconds, *down)))


def _until(seconds: float, base: float, slope: float, rate: float) -> float:
    """The share s at which base + slope s bytes take the seconds; infinite where a larger share costs no more."""
    if slope <= 0 or math.isinf(rate):
        return math.inf
    return (seconds * rate - base) / slope


def _lines(members: Sequence[Member], able: Sequence[bool], rates: Mapping[str, Rate]) -> list[Line]:
    """Unknown rates are the median of the known ones; with none known the direction limits nobody."""
    known = [rates.get(m.peer.hotkey, Rate(None, None)) for m in members]
    ups, downs = _middle([r.up for r in known]), _middle([r.down for r in known])
    return [
        Line(up=_first(r.up, ups, math.inf), down=_first(r.down, downs, math.inf), reduces=reduces)
        for reduces, r in zip(able, known, strict=True)
    ]


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _rate(count: int, seconds: float) -> float | None:
    """Bytes per second; None where too little was moved, or in no time."""
    measured = count >= LEAST_BYTES and seconds > 0 and math.isfinite(count / seconds)
    return count / seconds if measured else None


def _limit(uid: int, sent: Mapping[int, float | None]) -> float | None:
    """What the receiver `uid` let one sender have, if that is clearly less than the others did; else infinite."""
    rate, usual = sent[uid], _middle([rate for other, rate in sent.items() if other != uid])
    if rate is None or usual is None:
        return None
    return rate if rate < SLOWER * usual else math.inf


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _middle(values: Sequence[float | None]) -> float | None:
    known = _known(values)
    return statistics.median_low(known) if known else None


def _moved(known: float | None, seen: float | None, usual: float | None) -> float | None:
    if seen is None:
        return known
    before = _first(known, usual, seen)
    if math.isinf(before):
        if math.isinf(seen):
            return seen
        before = STEP * seen  # a limit that is new is believed as slowly as one that changes
    step = min(STEP, max(1 / STEP, seen / before))
    return before * math.pow(step, PULL)
