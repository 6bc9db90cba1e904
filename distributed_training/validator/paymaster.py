"""Setting weights: when they are due, from which scores, and what follows from the chain's answer."""

from __future__ import annotations

from dataclasses import replace

from bittensor import Client, Wallet

from distributed_training.events import WeightsSet
from distributed_training.node import ChainView
from distributed_training.run import ScoringSpec
from distributed_training.scoring.combine import ScoreBook, weights
from distributed_training.validator.memory import Remembered
from template.chain.metagraph import Metagraph
from template.chain.weights import process, set_weights
from template.clock import Clock
from template.errors import ChainFault, ChainUnavailable
from template.telemetry import Telemetry

TICK_SECONDS = 1.0
CHAIN_PATIENCE_BLOCKS = 3  # before weights are tried again on a chain that did not answer


def earned(book: ScoreBook, metagraph: Metagraph) -> dict[int, float]:
    """Weight by uid of those who still hold the uid that they earned it with; empty if nobody earned anything."""
    still = tuple(e for e in book.entries if metagraph.uid_of(e.hotkey) == e.uid)
    return weights(replace(book, entries=still)) or {}


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
        block = self._chain.block
        shares: dict[int, float] = {}
        wait = 0
        try:
            shares = self._shares(self._chain.metagraph)
            outcome = await set_weights(
                self._client, self._wallet, self._netuid, shares, version_key=self._spec.version_key
            )
            status, detail, wait = str(outcome.status), outcome.message, outcome.blocks_to_wait
        except ChainUnavailable as error:
            status, detail, wait = "unavailable", str(error), CHAIN_PATIENCE_BLOCKS
        except ChainFault as error:
            status, detail = "refused", str(error)
        self._telemetry.emit(
            WeightsSet(
                uid=self._uid,
                block=block,
                mechid=0,
                weights={str(uid): weight for uid, weight in shares.items()},
                outcome=status,
                detail=detail,
            )
        )
        tried = block - self._spec.weights_interval + wait if wait else block
        await self._memory.change(weights_block=tried)

    def _shares(self, metagraph: Metagraph) -> dict[int, float]:
        if metagraph.owner_uid is None:
            raise ChainFault("the subnet's owner has no uid: there is nobody whose weight is burned")
        return process(
            earned(self._memory.now.book, metagraph),
            uids=len(metagraph),
            owner_uid=metagraph.owner_uid,
            min_allowed=metagraph.min_allowed_weights,
            max_limit=metagraph.max_weights_limit,
        )
