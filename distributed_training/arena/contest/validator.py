"""A validator of mechanism 1: follows the rounds on chain, has them decided, and sets the weights. Never mechanism 0.

Each look at the chain does what is due and no more: read the commitments when a round has closed, decide it when its
sources are revealed, set weights when their interval is over or the champion has changed. What it has done is in the
state file first, so that it can be killed at any time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from bittensor import Client, Wallet

from distributed_training.arena.contest.crown import MECHANISM, crown
from distributed_training.arena.contest.events import (
    ContestClosed,
    ContestDecided,
    ContestPostponed,
    ContestVoid,
    ContestWeightsSet,
)
from distributed_training.arena.contest.places import Place
from distributed_training.arena.contest.referee import Decision, Referee, collect, result_of, taking_part
from distributed_training.arena.contest.spec import ContestSpec, Phase, Round, round_at, round_numbered, seeds_of
from distributed_training.arena.contest.state import StateFile
from template.chain.commitments import read_block_hash, read_commitments
from template.chain.faults import translated
from template.chain.metagraph import read_metagraph
from template.chain.weights import WeightsOutcome, WeightsStatus, set_weights
from template.clock import Clock
from template.errors import ChainFault, ChainUnavailable, SubnetError
from template.files import replace_json
from template.telemetry import Telemetry

TICK_SECONDS = 6.0
CHAIN_SECONDS = 120.0  # for one answer of the chain
RETRY_BLOCKS = 5  # before weights that the chain refused are tried again
UNAVAILABLE = "unavailable"
NOBODY_TO_BURN = "nobody_to_burn"
log = logging.getLogger(__name__)
T = TypeVar("T")


class ContestValidator:
    """Judges and pays for one validator."""

    def __init__(
        self,
        *,
        uid: int,
        netuid: int,
        spec: ContestSpec,
        client: Client,
        wallet: Wallet,
        referee: Referee,
        place: Place,
        state: StateFile,
        results: Path,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        """`state` is open; `results` is the folder for what rounds came to."""
        self._uid = uid
        self._netuid = netuid
        self._spec = spec
        self._client = client
        self._wallet = wallet
        self._referee = referee
        self._place = place
        self._state = state
        self._results = results
        self._telemetry = telemetry
        self._clock = clock
        self._paid: str | None = None  # whom weights were last set for; "" for burning
        self._wait_until = 0  # block before which the chain would not take weights

    async def run(self, rounds: int | None = None) -> None:
        """Until cancelled, or until `rounds` more are over and paid for."""
        last = None if rounds is None else self._state.now.round + rounds
        while last is None or self._state.now.round < last or self._paid != self._champion:
            try:
                await self.look()
            except ChainFault as error:
                log.warning("the chain: %s", error)
            await self._clock.sleep(TICK_SECONDS)

    @property
    def _champion(self) -> str:
        """The hotkey that is paid; "" for nobody's."""
        champion = self._state.now.champion
        return "" if champion is None else champion.hotkey

    async def look(self) -> None:
        """Do what is due at the head of the chain.

        Raises:
            ChainFault: the chain does not answer, or not as it should.
        """
        block = await self._answer(self._client.block(), "the head of the chain")
        await self._play(block)
        await self._pay(block)

    async def _answer(self, reading: Awaitable[T], what: str) -> T:
        with translated(f"reading {what}"):
            async with asyncio.timeout(CHAIN_SECONDS):
                return await reading

    async def _play(self, block: int) -> None:
        now, state = round_at(self._spec.calendar, block), self._state.now
        if now is None:
            return
        turn = round_numbered(self._spec.calendar, state.round)
        if block >= turn.closes and state.committed is None:
            await self._close(turn, block)
        if block >= turn.closes and turn.phase(block) is Phase.DECIDE and self._state.now.committed is not None:
            await self._decide(turn, block)

    async def _close(self, turn: Round, block: int) -> None:
        try:
            reading = read_commitments(self._client, self._netuid, turn.closes - 1)
            found = taking_part(await self._answer(reading, "the commitments"), turn)
        except ChainFault as error:
            self._not_now(turn, block, error)
            return
        self._state.save(dataclasses.replace(self._state.now, committed=found))
        self._telemetry.emit(
            ContestClosed(
                uid=self._uid, contest=self._spec.contest_id, round=turn.number, block=block, committed=sorted(found)
            )
        )

    async def _decide(self, turn: Round, block: int) -> None:
        state = self._state.now
        assert state.committed is not None
        try:
            block_hash = await self._answer(read_block_hash(self._client, turn.seed_block), "a block's hash")
            seeds = seeds_of(self._spec.contest_id, turn.number, block_hash, self._spec.rules.replicates)
            candidates = await asyncio.to_thread(
                collect, state.committed, turn.number, self._spec, self._netuid, self._place
            )
            decision = await asyncio.to_thread(self._referee.decide, state, seeds, candidates)
        except SubnetError as error:  # of the chain, the place or this machine: an entry's own is in its standing
            self._not_now(turn, block, error)
            return
        path = self._results / f"{turn.number}.json"
        replace_json(path, result_of(self._spec, turn, block_hash, state, candidates, decision))
        self._state.save(
            dataclasses.replace(
                state, round=turn.number + 1, champion=decision.champion, earlier=decision.earlier, committed=None
            )
        )
        self._tell(turn, seeds, decision, str(path))

    def _not_now(self, turn: Round, block: int, error: SubnetError) -> None:
        """Try again at the next look, until it is the next round's turn: then this one is void."""
        following = round_numbered(self._spec.calendar, turn.number + 1)
        kind = ContestPostponed if block < following.revealed else ContestVoid
        self._telemetry.emit(kind(uid=self._uid, contest=self._spec.contest_id, round=turn.number, reason=str(error)))
        if kind is ContestPostponed:
            return
        self._state.save(dataclasses.replace(self._state.now, round=turn.number + 1, committed=None))

    def _tell(self, turn: Round, seeds: tuple[int, ...], decision: Decision, path: str) -> None:
        champion, standings = decision.champion, decision.judgement.standings
        self._telemetry.emit(
            ContestDecided(
                uid=self._uid,
                contest=self._spec.contest_id,
                round=turn.number,
                seeds=list(seeds),
                throne=decision.judgement.throne.name,
                champion=None if champion is None else champion.hotkey,
                standings=[
                    {"hotkey": s.hotkey, "status": str(s.status), "reason": s.reason, "metric": s.metric}
                    for s in standings
                ],
                result=path,
            )
        )

    async def _pay(self, block: int) -> None:
        who = self._champion
        last = self._state.now.weights_block
        due = last is None or block - last >= self._spec.weights.interval or who != self._paid
        if not due or block < self._wait_until:
            return
        outcome, weights = await self._set(who or None)
        self._wait_until = block + (outcome.blocks_to_wait or RETRY_BLOCKS)
        self._telemetry.emit(
            ContestWeightsSet(
                uid=self._uid,
                block=block,
                mechid=MECHANISM,
                champion=who or None,
                weights={str(uid): weight for uid, weight in weights.items()},
                outcome=str(outcome.status) if outcome.code != UNAVAILABLE else UNAVAILABLE,
                code=outcome.code,
                detail=outcome.message,
            )
        )
        if outcome.status in (WeightsStatus.SET, WeightsStatus.COMMITTED):
            self._paid, self._wait_until = who, 0
            self._state.save(dataclasses.replace(self._state.now, weights_block=block))

    async def _set(self, champion: str | None) -> tuple[WeightsOutcome, dict[int, float]]:
        """One attempt; what the chain did not answer is an outcome, too: the same weights may be set again."""
        weights: dict[int, float] = {}
        try:
            async with asyncio.timeout(CHAIN_SECONDS):
                weights = crown(champion, await read_metagraph(self._client, self._netuid, MECHANISM))
                if not weights:
                    return _refused("the subnet's owner has no uid: there is nobody to burn with", NOBODY_TO_BURN), {}
                outcome = await set_weights(
                    self._client,
                    self._wallet,
                    self._netuid,
                    weights,
                    mechid=MECHANISM,
                    version_key=self._spec.weights.version_key,
                )
        except (ChainUnavailable, TimeoutError) as error:
            return _refused(f"no answer: {error}", UNAVAILABLE), weights
        except ChainFault as error:
            return _refused(str(error), type(error).__name__), weights
        return outcome, weights


def _refused(message: str, code: str) -> WeightsOutcome:
    return WeightsOutcome(status=WeightsStatus.REFUSED, message=message, code=code)
