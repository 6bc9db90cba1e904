"""Members that misbehave in rounds, each an honest member's side of the streams with one part replaced."""

from __future__ import annotations

import numpy as np

from distributed_training.averaging.codec import Floats
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.vote import failure
from distributed_training.protocol import Failure
from tests.adversaries.subnet.hall import VALUE_BYTES, Line

JUST_INSIDE = 0.95  # of the deadline


class Unchecked(Line):
    """Sends whatever it is given: an honest averager refuses what the others would have to refuse."""

    checks_itself = False


class Withholder(Line):
    """Takes the average and sends nothing. Hopes to be paid without using its line."""

    def part(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return None


class WithholderFromMiners(Line):
    """Sends its part to validators alone. Hopes that nobody who pays sees it."""

    def part(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return None if reducer in plan.contributors else part


class WrongSize(Line):
    """Sends parts that are too short. Hopes that somebody's program stumbles over it."""

    def part(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return part[:-1]


class Straggler(Line):
    """Sends everything just inside the deadline: an honest miner on a bad line."""

    def rate_to(self, plan: RoundPlan, receiver: int) -> float:
        return slowest_rate(plan)


class FastForValidators(Line):
    """Sends at full speed to validators, who measure it, and just inside the deadline to everybody else.

    Hopes for the full bandwidth score on a line that it keeps for something else.
    """

    def rate_to(self, plan: RoundPlan, receiver: int) -> float:
        return slowest_rate(plan) if receiver in plan.contributors else self.rate


class LyingReducer(Line):
    """Gives everybody minus three times the average of its share. Hopes that nobody computes it again."""

    def share(self, plan: RoundPlan, average: Floats) -> Floats:
        return average * np.float32(-3)


class Framer(Line):
    """Gives every round up, saying that another miner failed. Hopes that the other is shut out."""

    def __init__(self, rate: float, victims: tuple[int, ...]) -> None:
        super().__init__(rate)
        self._victims = victims

    def accuses(self, plan: RoundPlan) -> tuple[Failure, ...]:
        present = [uid for uid in self._victims if uid in plan.contributors]
        return tuple(failure(uid, "EXCHANGE", "sender", "no complete part in time") for uid in present)


class NeverComes(Line):
    """Agrees to every round and opens no stream. Hopes that reports are enough."""

    def comes(self, plan: RoundPlan) -> bool:
        return False


def slowest_rate(plan: RoundPlan) -> float:
    """Bytes a second at which the largest piece of the round arrives just inside the deadline."""
    ranges = plan.ranges().values()
    largest = sorted(stop - start for start, stop in ranges)[-2:]
    return VALUE_BYTES * sum(largest) / (JUST_INSIDE * plan.deadlines.exchange)
