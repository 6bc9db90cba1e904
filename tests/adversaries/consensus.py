"""What Yuma pays on the embedded chain: hundreds of miners that come and go, honest validators, a copier, a silent one.

Each honest validator samples miners with randomness of its own and scores them by `scoring.combine.advance`, as in a
run; what it would have seen of a miner is made up here from what that miner really does. The chain is the real one, in
a file: registrations, pruning, weights and consensus. A turn is one tempo of the chain.

The copier sets the stake-weighted mean of the others' rows as they could be seen `lag` tempos before: at once on a
chain where weights are open (0), after the reveal period with commit-reveal (1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distributed_training.run import load_run
from distributed_training.scoring.bandwidth import Measured
from distributed_training.scoring.combine import Evidence, Rules, ScoreBook, advance, weights
from distributed_training.scoring.gradient import AuditResult, Finding
from distributed_training.scoring.participation import Standing
from distributed_training.scoring.steps import Steps
from template.chain.local import neurons, operator, stake
from template.chain.local.genesis import NETUID, QUICK, Registration, create_chain
from template.chain.local.ledger import Ledger
from template.chain.local.operator import Keys
from template.chain.local.state import State
from template.chain.local.yuma import U16
from template.chain.weights import process
from tests.adversaries.subnet.neurons import key_of
from tests.adversaries.subnet.subnet import NANO

TEMPO = 20
STAKE = 1000.0
STAKE_TURNS = 20
IMMUNE = 2  # tempos
SETTLED = 10  # tempos after which nobody is a newcomer any more
COPIER_FROM_END, SILENT_FROM_END = 1, 2  # the last validator copies, the one before it falls silent
SPREAD = 0.7  # of the logarithm of the miners' samples
USUAL = 100  # samples an epoch

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one simulation. `sampled` miners an epoch and validator; `epochs` of training a tempo; `churn` of the miners
    are replaced each tempo; `lag`: see above; `settings` of the chain, by the SDK's names.
    """

    uids: int = 256
    validators: int = 8
    sampled: int = 64
    epochs: int = 5
    churn: int = 4
    lag: int = 1
    tempos: int = 40
    measured: int = 20
    seed: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Over the measured tempos: by hotkey of those who were there all the time, what a miner did and was paid, as
    shares; by validator, the dividends a stake, 1 being the mean of the honest ones.
    """

    work: Floats
    pay: Floats
    honest: Floats
    copier: float
    silent: float

    @property
    def correlation(self) -> float:
        return float(np.corrcoef(self.work, self.pay)[0, 1])

    @property
    def error(self) -> float:
        """The median of how far a miner's pay is from its share of the work, relative to that."""
        return float(np.median(np.abs(self.pay / self.work - 1)))


@dataclass
class _Validator:
    uid: int
    random: np.random.Generator
    book: ScoreBook = field(default_factory=ScoreBook)


class Subnet:
    """The chain file and who is on it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self.path = folder / "chain.db"
        self.random = np.random.default_rng(plan.seed)
        self.samples: dict[str, float] = {}
        self.work: dict[str, float] = {}
        self.pay: dict[str, float] = {}
        self.dividends = np.zeros(plan.uids)
        self.stakes = np.zeros(plan.uids)
        self.epoch = 0
        nano = load_run(NANO)
        self.rules = Rules(audit=nano.audit, scoring=nano.scoring)
        self.validators = [
            _Validator(uid, np.random.default_rng((plan.seed, uid))) for uid in range(1, plan.validators + 1)
        ]
        self.seen: list[dict[int, Floats]] = []  # the rows that could be seen, by tempo
        self._newest = 0
        create_chain(
            self.path,
            owner=_keys("owner", 0),
            neurons=[Registration(_keys("v", uid)) for uid in range(1, plan.validators + 1)],
            endow={_keys("v", uid).coldkey: STAKE for uid in range(1, plan.validators + 1)},
            tempo=TEMPO,
            mechanisms=1,
            hyperparameters={
                **QUICK,
                "max_allowed_uids": plan.uids,
                "immunity_period": IMMUNE * TEMPO,
                "burn_half_life": 1,
                **plan.settings,
            },
            manual=True,
        )

    def run(self) -> Result:
        """All tempos."""
        with Ledger(self.path) as chain:
            operator.apply(chain, self._stake)
            operator.apply(chain, lambda state: self._register(state, self.plan.uids - 1 - self.plan.validators))
            operator.advance(chain, (IMMUNE + 1) * TEMPO)  # there are permits, and uids that may be taken
            for tempo in range(self.plan.tempos):
                self._turn(chain, self.plan.tempos - tempo)
        return self._result()

    def _turn(self, chain: Ledger, left: int) -> None:
        """One tempo, with so many `left`."""
        measured = left <= self.plan.measured
        operator.apply(chain, lambda state: self._register(state, self.plan.churn))
        hotkeys: list[str] = operator.apply(chain, lambda state: neurons.hotkeys(state, NETUID))
        for _ in range(self.plan.epochs):
            self._train(hotkeys, measured=measured)
        silent = left <= self.plan.measured + SETTLED
        setting = self.validators[: -SILENT_FROM_END if silent else -COPIER_FROM_END]
        rows = {v.uid: self._row(v) for v in setting}
        self.seen.append(rows)
        copied = self.seen[max(0, len(self.seen) - 1 - self.plan.lag)]
        rows = rows | {self.validators[-COPIER_FROM_END].uid: np.mean(list(copied.values()), axis=0)}
        operator.apply(chain, lambda state: self._set(state, rows))
        operator.advance(chain, TEMPO)
        if measured:
            operator.apply(chain, lambda state: self._note(state, hotkeys))

    def _stake(self, state: State) -> None:
        """In small turns: the price rises with every purchase."""
        for _ in range(STAKE_TURNS):
            for validator in self.validators:
                operator.add_stake(state, NETUID, _keys("v", validator.uid), STAKE / STAKE_TURNS)

    def _register(self, state: State, count: int) -> None:
        for _ in range(count):
            keys = _keys("m", self._newest)
            self._newest += 1
            operator.fund(state, keys.coldkey, 1e6)
            operator.register(state, NETUID, keys)
            self.samples[keys.hotkey] = USUAL * math.exp(SPREAD * self.random.standard_normal())

    def _train(self, hotkeys: list[str], *, measured: bool) -> None:
        """One epoch: every miner works, every honest validator looks at some of them."""
        miners = {uid: hotkey for uid, hotkey in enumerate(hotkeys) if uid > self.plan.validators}
        done = {uid: int(self.random.poisson(self.samples[hotkey])) for uid, hotkey in miners.items()}
        for validator in self.validators[:-COPIER_FROM_END]:
            chosen = validator.random.choice(list(miners), self.plan.sampled, replace=False)
            evidence = [_evidence(int(uid), miners[int(uid)], done[int(uid)], self.epoch) for uid in chosen]
            validator.book, _ = advance(validator.book, self.epoch, miners, evidence, self.rules)
        self.epoch += 1
        if measured:
            for uid, hotkey in miners.items():
                self.work[hotkey] = self.work.get(hotkey, 0.0) + done[uid]

    def _row(self, validator: _Validator) -> Floats:
        shares = process(weights(validator.book) or {}, uids=self.plan.uids, owner_uid=0)
        row = np.zeros(self.plan.uids)
        row[list(shares)] = list(shares.values())
        return row

    def _set(self, state: State, rows: Mapping[int, Floats]) -> None:
        for uid, row in rows.items():
            dests = [int(target) for target in np.flatnonzero(np.round(U16 * row / row.max()))]
            values = [int(value) for value in np.round(U16 * row[dests] / row.max())]
            operator.execute(
                state,
                _keys("v", uid).hotkey,
                "SubtensorModule",
                "set_weights",
                netuid=NETUID,
                dests=dests,
                weights=values,
                version_key=0,
            )

    def _note(self, state: State, hotkeys: list[str]) -> None:
        paid = state.vector("Incentive", neurons.mechanisms(state, NETUID)[0], len(hotkeys), 0)
        for hotkey, incentive in zip(hotkeys, paid, strict=True):
            self.pay[hotkey] = self.pay.get(hotkey, 0.0) + incentive
        self.dividends += np.array(state.vector("Dividends", NETUID, len(hotkeys), 0), dtype=np.float64)
        self.stakes += np.array(stake.alpha_of(state, NETUID, hotkeys), dtype=np.float64)

    def _result(self) -> Result:
        full = self.plan.measured * self.plan.epochs * USUAL * math.exp(-4 * SPREAD)
        there = [hotkey for hotkey in self._all_the_time() if self.work.get(hotkey, 0.0) > full]
        work = np.array([self.work[hotkey] for hotkey in there])
        pay = np.array([self.pay.get(hotkey, 0.0) for hotkey in there])
        earned = (self.dividends / np.maximum(self.stakes, 1.0))[1 : self.plan.validators + 1]
        honest = earned[:-SILENT_FROM_END]
        mean = honest.mean()
        return Result(
            work=work / work.sum(),
            pay=pay / pay.sum(),
            honest=honest / mean,
            copier=float(earned[-COPIER_FROM_END] / mean),
            silent=float(earned[-SILENT_FROM_END] / mean),
        )

    def _all_the_time(self) -> Iterable[str]:
        """Who was there, and no newcomer, from the first measured tempo to the last."""
        with Ledger(self.path) as chain:
            return operator.apply(chain, self._settled)

    def _settled(self, state: State) -> list[str]:
        since = state.block - (self.plan.measured + SETTLED) * TEMPO
        hotkeys = neurons.hotkeys(state, NETUID)
        return [
            hotkey
            for uid, hotkey in enumerate(hotkeys)
            if uid > self.plan.validators and state.get("BlockAtRegistration", NETUID, uid) < since
        ]


def _keys(role: str, number: int) -> Keys:
    hotkey = key_of(number, {"owner": 1, "v": 2, "m": 3}[role]).ss58_address
    coldkey = key_of(number, {"owner": 4, "v": 5, "m": 6}[role]).ss58_address
    return Keys(coldkey=coldkey, hotkey=hotkey)


def _evidence(uid: int, hotkey: str, samples: int, epoch: int) -> Evidence:
    """What a validator sees of an honest miner."""
    audit = AuditResult(
        uid=uid,
        epoch=epoch,
        number=0,
        agreement=1.0,
        passed=True,
        finding=Finding.AGREES,
        loss_difference=0.0,
        gradient_difference=0.0,
    )
    return Evidence(
        uid=uid,
        hotkey=hotkey,
        audits=(audit,),
        steps=Steps(samples=samples, counted=1),
        transfers=(Measured(bytes=10_000_000, seconds=1.0),),
        standings=(Standing.DELIVERED,),
    )


def simulate(folder: Path, plan: Plan) -> Result:
    """Run it; the same plan gives the same result."""
    return Subnet(folder, plan).run()


def open_weights(plan: Plan) -> Plan:
    """The same on a chain where a copier sees weights as soon as they are set."""
    return dataclasses.replace(plan, lag=0)
