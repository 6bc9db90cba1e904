"""Setting weights: when they are due, from which scores, and what follows from the chain's answer."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

from bittensor import Client, Wallet

from distributed_training.events import WeightsSet
from distributed_training.node import ChainView
from distributed_training.run import ScoringSpec
from distributed_training.validator.memory import Remembered
from distributed_training.validator.payment import Payment, payment_of
from template.chain.faults import translated
from template.chain.metagraph import Metagraph
from template.chain.weights import WeightsOutcome, WeightsStatus, agree, read_held, set_weights
from template.clock import Clock
from template.errors import ChainFault, ChainRefused, ChainUnavailable
from template.telemetry import Telemetry

MECHANISM = 0  # that of training; the arena's is 1
TICK_SECONDS = 1.0
CHAIN_SECONDS = 120.0  # for the chain to take weights and to finalize them
CHAIN_PATIENCE_BLOCKS = 3  # before weights are tried again on a chain that did not answer
TRIES = 5  # on such a chain; then the next interval is waited for
SEALED = 8  # commits that may wait to be opened; the oldest of more was not, or not to what was sealed
UNAVAILABLE = "unavailable"
NOT_REVEALED = "not_revealed"


@dataclass(frozen=True)
class _Sent:
    """Weights that went out at `block`, and that the chain may hold or not: unanswered for, or sealed."""

    payment: Payment
    epoch: int
    block: int


@dataclass(frozen=True)
class _Result:
    """What came of an attempt: the payment is that of an earlier one if that is found to have succeeded after all."""

    payment: Payment
    epoch: int
    status: str
    detail: str
    wait: int = 0  # blocks; 0: the interval
    code: str | None = None
    outcome: WeightsOutcome | None = None


class Paymaster:
    """Pays for one validator."""

    def __init__(
        self,
        *,
        uid: int,
        spec: ScoringSpec,
        netuid: int,
        chain: ChainView,
        client: Client,
        wallet: Wallet,
        memory: Remembered,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._uid = uid
        self._spec = spec
        self._netuid = netuid
        self._chain = chain
        self._client = client
        self._wallet = wallet
        self._memory = memory
        self._telemetry = telemetry
        self._clock = clock
        self._attempt = 0  # since weights were last set
        self._unsure: _Sent | None = None
        self._sealed: list[_Sent] = []  # oldest first

    async def run(self) -> None:
        """Pay whenever it is due, until cancelled."""
        while True:
            if self.due():
                await self.pay()
            await self._clock.sleep(TICK_SECONDS)

    def due(self) -> bool:
        """Whether an epoch was scored at all, and the interval since the last attempt is over."""
        memory, block = self._memory.now, self._chain.block
        if memory.book.epoch is None:
            return False
        last = memory.weights_block
        return last is None or block - last >= self._spec.weights_interval

    async def pay(self) -> None:
        """Set the weights that the scores give; whatever the chain says is told, and decides when to try again."""
        block, metagraph, book = self._chain.block, self._chain.metagraph, self._memory.now.book
        assert book.epoch is not None, "nothing is due before an epoch was scored"
        self._attempt += 1
        payment = payment_of(book, metagraph)
        try:
            result = await self._settle(payment, book.epoch, metagraph)
            self._unsure = None
        except ChainUnavailable as error:
            self._unsure = self._unsure or _Sent(payment, book.epoch, block)
            wait = CHAIN_PATIENCE_BLOCKS if self._attempt % TRIES else 0
            result = _Result(payment, book.epoch, UNAVAILABLE, str(error), wait)
        except ChainFault as error:
            code = error.code if isinstance(error, ChainRefused) else type(error).__name__
            result = _Result(payment, book.epoch, WeightsStatus.REFUSED, str(error), code=code)
        self._tell(result, block)
        if result.status is WeightsStatus.COMMITTED:
            self._sealed.append(_Sent(result.payment, result.epoch, block))
        if result.status in (WeightsStatus.SET, WeightsStatus.COMMITTED):
            self._attempt = 0
        tried = block - self._spec.weights_interval + result.wait if result.wait else block
        await self._memory.change(weights_block=tried)

    async def _settle(self, payment: Payment, epoch: int, metagraph: Metagraph) -> _Result:
        """One attempt, or what is found of the one before, whose answer was lost.

        Raises:
            ChainFault: as `set_weights`; ChainUnavailable if there is no answer in `CHAIN_SECONDS`.
        """
        problem = self._problem(payment, metagraph)
        if problem is not None:
            return _Result(payment, epoch, WeightsStatus.REFUSED, problem[1], code=problem[0])
        with translated("setting weights"):
            async with asyncio.timeout(CHAIN_SECONDS):
                if self._sealed:
                    await self._look_for_sealed()
                if self._unsure is not None:
                    found = await self._found(self._unsure)
                    if found is not None:
                        return found
                    self._unsure = None
                outcome = await set_weights(
                    self._client,
                    self._wallet,
                    self._netuid,
                    payment.shares,
                    mechid=MECHANISM,
                    version_key=self._spec.version_key,
                )
        return _Result(payment, epoch, outcome.status, outcome.message, outcome.blocks_to_wait, outcome.code, outcome)

    async def _found(self, unsure: _Sent) -> _Result | None:
        """That attempt's success, if the chain holds its weights."""
        held = await read_held(self._client, self._wallet.hotkey.ss58_address, self._netuid, MECHANISM)
        if held.block < unsure.block or not agree(unsure.payment.shares, held.row):
            return None
        text = f"set in block {held.block}, though the chain did not answer"
        outcome = WeightsOutcome(status=WeightsStatus.SET, message=text, block=held.block, stored=held.row)
        return _Result(unsure.payment, unsure.epoch, outcome.status, text, outcome=outcome)

    async def _look_for_sealed(self) -> None:
        """Tell which commit the chain has opened since; one that never shows is told, too."""
        held = await read_held(self._client, self._wallet.hotkey.ss58_address, self._netuid, MECHANISM)
        opened = [at for at, sent in enumerate(self._sealed) if agree(sent.payment.shares, held.row)]
        if opened:
            sent, self._sealed = self._sealed[opened[-1]], self._sealed[opened[-1] + 1 :]
            text = f"the chain has opened what was committed at block {sent.block}"
            outcome = WeightsOutcome(status=WeightsStatus.REVEALED, message=text, stored=held.row)
            self._tell(_Result(sent.payment, sent.epoch, outcome.status, text, outcome=outcome), sent.block)
        elif len(self._sealed) > SEALED:
            sent = self._sealed.pop(0)
            text = (
                f"what was committed at block {sent.block} was not seen on the chain, and {SEALED} later ones neither"
            )
            self._tell(_Result(sent.payment, sent.epoch, WeightsStatus.REFUSED, text, code=NOT_REVEALED), sent.block)

    def _problem(self, payment: Payment, metagraph: Metagraph) -> tuple[str, str] | None:
        """Why the chain need not be asked at all: a code, and a line for a person."""
        wanted, key = metagraph.weights_version, self._spec.version_key
        if key < wanted:
            return "old_version", (
                f"the subnet asks for weights of version {wanted}, this run has scoring.version_key {key}: update this "
                "software and the run file"
            )
        if not payment.shares:
            return "nobody_to_burn", "the subnet's owner has no uid: there is nobody whose weight is burned"
        return None

    def _tell(self, result: _Result, block: int) -> None:
        outcome = result.outcome
        self._telemetry.emit(
            WeightsSet(
                uid=self._uid,
                block=block,
                mechid=MECHANISM,
                epoch=result.epoch,
                version_key=self._spec.version_key,
                departed=list(result.payment.departed),
                limits=dataclasses.asdict(result.payment.limits),
                weights={str(uid): weight for uid, weight in result.payment.shares.items()},
                attempt=self._attempt,
                outcome=str(result.status),
                code=result.code,
                detail=result.detail,
                set_in=None if outcome is None else outcome.block,
                stored={} if outcome is None else {str(uid): value for uid, value in outcome.stored.items()},
            )
        )
