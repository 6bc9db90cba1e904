"""How long a leader lets each state of the next round take: the median of the last rounds and some deviations. Pure.

Each round gives one number a state: what the leader needed itself, or what the median of the members says that they
needed, whichever is more. So a minority that lies moves nothing, and whoever is slow in earnest holds up nobody for
longer than the deadline.

A deadline that was missed may have been wrong. Then what was measured before counts no more, and the next one is twice
as long, and again, up to the run's, until enough rounds have passed the state: a change of the network costs a few
rounds, and a member that stalls on purpose cannot do worse than bring the run's own deadline back.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_training.averaging.outcome import RoundOutcome, RoundState
from distributed_training.averaging.plan import StateDeadlines
from distributed_training.protocol import StateSeconds

STATES = ("connect", "exchange", "commit")
WINDOW = 16  # rounds
ENOUGH = 4  # rounds, before their median means something
NORMAL = 1.4826  # makes the median of absolute deviations the standard deviation of a normal distribution
LEAST_DEVIATION = 0.25  # of the median: rounds that all took alike are no promise that the next one will
NEARLY = 0.9  # of a deadline: who gives up hears of others whose clocks are a little ahead


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the run spec allows: deadlines of at most `longest` and at least `least` seconds; `spread` in deviations."""

    longest: StateDeadlines
    least: float
    spread: float


@dataclass(frozen=True)
class Sample:
    """One round's seconds in a state, or the deadline that it missed there."""

    seconds: float
    missed: bool = False


@dataclass(frozen=True, kw_only=True)
class Times:
    """The last rounds that were measured, by state, oldest first."""

    connect: tuple[Sample, ...] = ()
    exchange: tuple[Sample, ...] = ()
    commit: tuple[Sample, ...] = ()

    def after(self, samples: Mapping[str, Sample]) -> Times:
        """With one more round, of which there may be a sample for each state."""
        added = {state: (*getattr(self, state), sample)[-WINDOW:] for state, sample in samples.items()}
        return dataclasses.replace(self, **added)


def adapted(times: Times, limits: Limits) -> StateDeadlines:
    """The deadlines of the next round; the run's own as long as too little was measured."""
    longest = dataclasses.asdict(limits.longest)
    return StateDeadlines(**{state: _deadline(getattr(times, state), longest[state], limits) for state in STATES})


def states_of(outcome: RoundOutcome) -> StateSeconds:
    """The seconds in each state that the round entered, the one that it was given up in included."""
    return StateSeconds(**{state: outcome.seconds.get(RoundState[state.upper()]) for state in STATES})


def entered(states: StateSeconds) -> dict[str, float]:
    """The seconds of the states that the round got to, in their order."""
    return {state: seconds for state in STATES if (seconds := getattr(states, state)) is not None}


def passed(states: StateSeconds, *, completed: bool) -> dict[str, float]:
    """The seconds of the states that the round got through; in the last one of a failed round it ended."""
    seconds = entered(states)
    if not completed and seconds:
        seconds.popitem()
    return seconds


def missed(states: StateSeconds, given: StateDeadlines) -> str | None:
    """The state by whose deadline a failed round was given up; None if something else ended it.

    COMMIT is counted from the end of the time for EXCHANGE.
    """
    seconds = entered(states)
    if not seconds:
        return None
    last = list(seconds)[-1]
    spent, limit = seconds[last], getattr(given, last)
    if last == "commit":
        spent, limit = spent + seconds["exchange"], limit + given.exchange
    return last if spent >= NEARLY * limit else None


def agreed(own: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> dict[str, Sample]:
    """What one round measured: by state, our own seconds or the median of all, ours among them, if that is more.

    A minority can neither raise the median above, nor lower it below, what an honest member says.
    """
    samples = {}
    for state, seconds in own.items():
        said = [seconds, *(other[state] for other in others if state in other)]
        samples[state] = Sample(max(seconds, statistics.median_low(said)))
    return samples


def _deadline(samples: Sequence[Sample], longest: float, limits: Limits) -> float:
    last_miss = max((index for index, sample in enumerate(samples) if sample.missed), default=-1)
    since = [sample.seconds for sample in samples[last_miss + 1 :]]
    if len(since) >= ENOUGH:
        wanted = _usual(since, limits.spread)
    elif last_miss >= 0:
        wanted = 2 * samples[last_miss].seconds
    else:
        wanted = longest
    return min(longest, max(limits.least, wanted))


def _usual(seconds: Sequence[float], spread: float) -> float:
    """The median and `spread` robust standard deviations."""
    middle = statistics.median(seconds)
    deviation = NORMAL * statistics.median(abs(value - middle) for value in seconds)
    return middle + spread * max(deviation, LEAST_DEVIATION * middle)
