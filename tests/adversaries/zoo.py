"""The zoo: every behaviour that a subnet must survive, what it replaces of an honest miner, what that costs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed_training.averaging.binding import sign_binding
from distributed_training.composition import EngineFactory
from distributed_training.data.loader import Loader
from distributed_training.engine.coordinates import coordinates
from distributed_training.engine.engine import Engine
from distributed_training.invitation import Reason, refuse
from distributed_training.protocol import IsAliveResponse, TrainResponse
from distributed_training.run import RunSpec
from template.errors import Refused
from template.transport.policy import Caller
from tests.adversaries import rounds
from tests.adversaries.behaviour import HONEST, Behaviour
from tests.adversaries.engines import ENGINES
from tests.adversaries.subnet.hall import Line
from tests.adversaries.subnet.neurons import key_of
from tests.adversaries.subnet.wire import Handler

NOTHING = 0.05  # of the time of a micro-batch: to make numbers up
FORWARD = 1 / 3


class InEngine(Behaviour):
    """A behaviour whose engine is one of ENGINES: the same class that a localnet runs with `--adversary`."""

    def __init__(self, name: str, *, harmful: bool = False, pace: float = 1.0) -> None:
        self.name, self.harmful, self.pace = name, harmful, pace
        self._make: EngineFactory = ENGINES[name]
        self._line = rounds.Unchecked if name in ("nan", "infinite") else Line
        self.__doc__ = self._make.__doc__

    def engine(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
        return self._make(spec, loader, uid, device)

    def line(self, rate: float) -> Line:
        return self._line(rate)


class InRounds(Behaviour):
    """A behaviour whose side of the streams is replaced."""

    def __init__(self, name: str, line: Callable[[float], Line], *, harmful: bool = False) -> None:
        self.name, self.harmful = name, harmful
        self._make = line
        self.__doc__ = line.__doc__

    def line(self, rate: float) -> Line:
        return self._make(rate)


class LiesWhereUnseen(Behaviour):
    """As `rounds.WhereUnseen`; which coordinates everybody knows, its engine can tell."""

    name, harmful = "lying-where-unseen", True

    def engine(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
        engine = super().engine(spec, loader, uid, device)
        self._known = lambda epoch: coordinates(spec.run_id, epoch, engine.layout, spec.audit.coordinates)
        return engine

    def line(self, rate: float) -> Line:
        return rounds.WhereUnseen(rate, lambda epoch: self._known(epoch))


class Accomplices(Behaviour):
    """As `rounds.Accomplice`, all of them together."""

    name, harmful = "lying-accomplices", True

    def __init__(self) -> None:
        self._friends: set[int] = set()

    def engine(self, spec: RunSpec, loader: Loader, uid: int, device: str) -> Engine:
        self._friends.add(uid)
        return super().engine(spec, loader, uid, device)

    def line(self, rate: float) -> Line:
        return rounds.Accomplice(rate, self._friends)


class Framing(Behaviour):
    """Gives every round up, saying that another miner failed. Hopes that the other is shut out."""

    name, harmful = "framing", True

    def __init__(self, victims: tuple[int, ...]) -> None:
        self._victims = victims

    def line(self, rate: float) -> Line:
        return rounds.Framer(rate, self._victims)


class PeerIdThief(Behaviour):
    """Signs for another miner's libp2p identity as its own. Hopes to be paid for the other's rounds."""

    name, harmful = "peer-id-theft", True

    def alive_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        stolen = sign_binding(key_of(uid), world.spec.run_id, f"peer{uid - 1}", (f"/memory/{uid - 1}",))

        async def answer(request: Any, caller: Caller) -> IsAliveResponse:
            status = await honest(request, caller)
            assert isinstance(status, IsAliveResponse)
            return status.model_copy(update={"peer": stolen})

        return answer


class Excuses(Behaviour):
    """Says that it has work, and refuses each round with a reason that is no fault. Hopes that reports are enough."""

    name = "excuses"

    def round_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        async def answer(request: Any, caller: Caller) -> Any:
            raise refuse(Reason.NOTHING_TO_GIVE, "nothing was trained")

        return answer


class Silent(Behaviour):
    """Never says that it is alive, so that it is in no round, and reports its work. Hopes to save its line."""

    name = "silent"

    def alive_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        async def answer(request: Any, caller: Caller) -> Any:
            raise Refused("busy", status=503, reason="busy")

        return answer


class Secretive(Behaviour):
    """Takes part in rounds and shows its records to nobody. Hopes to be counted by its presence."""

    name = "secretive"

    def train_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        async def answer(request: Any, caller: Caller) -> Any:
            raise Refused("busy", status=503, reason="busy")

        return answer


class Selective(Behaviour):
    """Works for one validator and refuses its records to the others. Hopes that the others' word is not missed."""

    name = "selective"

    def train_handler(self, uid: int, honest: Handler, world: Any) -> Handler:
        async def answer(request: Any, caller: Caller) -> TrainResponse:
            if caller.uid % 2:
                raise Refused("busy", status=503, reason="busy")
            response = await honest(request, caller)
            assert isinstance(response, TrainResponse)
            return response

        return answer


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table: who behaves how among the miners, and what is wanted.

    `share` of the miners behave so (at least one); `machines`: how many honest machines each of them stands for;
    `speed` and `rate` (of the line) of each, in those of an honest machine; `fine`: see Scenario. `wanted` is the
    largest pay, relative to honest pay for the same time; None: it is honest work, and `note` says what is right.
    """

    name: str
    make: Callable[[tuple[int, ...]], Behaviour]
    share: float = 0.125
    speed: float = 1.0
    rate: float = 1.0
    fine: int = 1
    machines: float = 1.0
    wanted: float | None = 0.05
    note: str = ""

    def behaviours(self, miners: range) -> dict[int, Behaviour]:
        """The last of the miners behave so; the others are possible victims."""
        count = max(1, round(self.share * len(miners)))
        behaviour = self.make(tuple(miners)[:count])
        return dict.fromkeys(miners[-count:], behaviour)


def _engine(name: str, *, pace: float = 1.0, harmful: bool = False) -> Callable[[tuple[int, ...]], Behaviour]:
    return lambda _: InEngine(name, pace=pace, harmful=harmful)


def _line(name: str, line: Callable[[float], Line], *, harmful: bool = False) -> Callable[[tuple[int, ...]], Behaviour]:
    return lambda _: InRounds(name, line, harmful=harmful)


def _case(name: str, *, pace: float = 1.0, harmful: bool = False, **more: Any) -> Case:
    return Case(name=name, make=_engine(name, pace=pace, harmful=harmful), **more)


_GROUPS = (0.1, 0.2, 0.33)  # of 16 miners: 2, 3, 5
SYBILS = 4

CASES: tuple[Case, ...] = (
    _case("free-rider", pace=NOTHING),
    _case("lazy", pace=(1 + NOTHING) / 2),
    _case("lazy-tenth", pace=0.9 + 0.1 * NOTHING, wanted=0.9, note="does nine tenths of the work: must earn less"),
    _case("copycat", pace=NOTHING),
    _case("copycat-part", pace=(1 + NOTHING) / 2),
    _case("plagiarist", pace=NOTHING),
    _case("off-assignment"),
    _case("same-page", pace=2 * NOTHING),
    _case("stale"),
    _case("no-backward", pace=FORWARD),
    _case("low-precision", pace=0.5),
    _case("quantised"),
    _case("replay", pace=NOTHING),
    _case("overclaim"),
    _case("nan", harmful=True),
    _case("infinite", harmful=True),
    _case("inflation", harmful=True),
    _case("sign-flip", harmful=True),
    _case("spike", harmful=True),
    _case("garbage", harmful=True),
    _case("honest-where-seen", harmful=True),
    Case(name="lying-reducer", make=_line("lying-reducer", rounds.LyingReducer, harmful=True)),
    Case(name="lying-where-unseen", make=lambda _: LiesWhereUnseen()),
    Case(name="hiding-reducer", make=_line("hiding-reducer", rounds.HidingReducer, harmful=True)),
    Case(name="lying-accomplices", make=lambda _: Accomplices()),
    Case(name="false-exhibitor", make=_line("false-exhibitor", rounds.FalseExhibitor)),
    Case(name="wrong-size", make=_line("wrong-size", rounds.WrongSize, harmful=True)),
    Case(name="withholding", make=_line("withholding", rounds.Withholder, harmful=True)),
    Case(
        name="withholding-from-miners",
        make=_line("withholding-from-miners", rounds.WithholderFromMiners, harmful=True),
    ),
    Case(name="never-comes", make=_line("never-comes", rounds.NeverComes, harmful=True)),
    Case(name="excuses", make=lambda _: Excuses()),
    Case(name="silent", make=lambda _: Silent()),
    Case(name="secretive", make=lambda _: Secretive()),
    Case(name="peer-id-theft", make=lambda _: PeerIdThief()),
    Case(name="framing", make=Framing),
    Case(
        name="straggler",
        make=_line("straggler", rounds.Straggler),
        wanted=None,
        note="honest work on a bad line: its samples are paid, bandwidth is not",
    ),
    Case(
        name="fast-for-validators",
        make=_line("fast-for-validators", rounds.FastForValidators),
        wanted=None,
        note="honest work; hides its line from who pays",
    ),
    Case(
        name="sybils",
        make=lambda _: HONEST,
        share=SYBILS / 16,
        speed=1 / SYBILS,
        rate=1 / SYBILS,
        fine=4,
        machines=1 / SYBILS,
        wanted=1.0,
        note=f"one machine as {SYBILS} uids: pay of the machine",
    ),
    *(_case("sign-flip", harmful=True, share=share, note=f"{share:.0%} collude") for share in _GROUPS[1:]),
    Case(name="lying-accomplices", make=lambda _: Accomplices(), share=0.33, note="33% collude"),
    *(_case("colluding-copies", harmful=True, share=share, note=f"{share:.0%} collude") for share in _GROUPS),
    *(Case(name="framing", make=Framing, share=share, note=f"{share:.0%} collude") for share in _GROUPS[1:]),
    *(_case("free-rider", pace=NOTHING, share=share, note=f"{share:.0%} collude") for share in _GROUPS[1:]),
)

BY_NAME: Mapping[str, Case] = {case.name: case for case in reversed(CASES)}
