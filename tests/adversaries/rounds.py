"""Members that misbehave in rounds, each an honest member's side of the streams with one part replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

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

    def share(self, plan: RoundPlan, start: int, average: Floats) -> Floats:
        return average * np.float32(-3)


class WhereUnseen(LyingReducer):
    """Does so but at the coordinates that everybody knows. Hopes that a reducer is only suspected for those."""

    def __init__(self, rate: float, known: Callable[[int], npt.NDArray[np.int64]]) -> None:
        super().__init__(rate)
        self._known = known

    def share(self, plan: RoundPlan, start: int, average: Floats) -> Floats:
        lie, known = super().share(plan, start, average), self._known(plan.epoch) - start
        known = known[(known >= 0) & (known < average.size)]
        lie[known] = average[known]
        return lie


class HidingReducer(LyingReducer):
    """Does so and shows its own part to nobody. Hopes that its average cannot be computed again without."""

    def shows(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return None


class Accomplice(LyingReducer):
    """Does so and shows nothing of what it sent to others that do. Hopes that nobody can compute theirs again."""

    def __init__(self, rate: float, friends: Collection[int]) -> None:
        super().__init__(rate)
        self._friends = friends

    def shows(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return None if reducer in self._friends else part


class FalseExhibitor(Line):
    """Works honestly, and shows something else than it sent. Hopes that an honest reducer is taken for a liar."""

    def shows(self, plan: RoundPlan, reducer: int, part: Floats) -> Floats | None:
        return part + np.float32(1)


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
