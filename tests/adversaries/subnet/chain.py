"""The chain of the simulation: who is registered, the block, the weights that validators set, and Yuma consensus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from template.chain.local import yuma
from template.chain.metagraph import Metagraph
from template.chain.weights import WeightsOutcome, WeightsStatus
from tests.adversaries.subnet import wire

BLOCK_SECONDS = 1.0
TEMPO = 20
RAO_A_BLOCK = 820_000_000  # of one alpha: the owner keeps 18 %
STAKE = 1000.0
OWNER = 0  # a uid without an axon, as in a localnet: weight on it is burned

HYPERPARAMETERS = yuma.Hyperparameters(  # what the embedded chain starts with
    kappa=32767,
    bonds_moving_average=900_000,
    bonds_penalty=65535,
    max_validators=64,
    stake_threshold=0,
    activity_cutoff=277,
    tempo=TEMPO,
    yuma3=False,
    liquid_alpha=False,
    alpha_low=45875,
    alpha_high=58982,
    sigmoid_steepness=1000,
)


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What one epoch of the chain paid, as shares of all incentive and of all dividends, by uid."""

    block: int
    incentive: tuple[float, ...]
    dividends: tuple[float, ...]


class Chain:
    """A ChainView, and what `set_weights` writes to."""

    def __init__(self, hotkeys: Sequence[str], validators: Sequence[int], stakes: Mapping[int, float]) -> None:
        size = len(hotkeys)
        self.metagraph = _metagraph(tuple(hotkeys), frozenset(validators), stakes)
        self.weights = np.zeros((size, size))
        self.paid: list[Paid] = []
        self._bonds = np.zeros((size, size))
        self._updated = np.zeros(size, dtype=np.int64)
        self._registered = np.zeros(size, dtype=np.int64)

    @property
    def block(self) -> int:
        return 1 + int(asyncio.get_running_loop().time() / BLOCK_SECONDS)

    def uid_of(self, hotkey: str) -> int | None:
        return self.metagraph.uid_of(hotkey)

    def set_weights(self, uid: int, shares: Mapping[int, float]) -> WeightsOutcome:
        """A row of weights, to the precision that the chain keeps."""
        row, top = np.zeros(len(self.metagraph)), max(shares.values())
        for target, share in shares.items():
            row[target] = round(yuma.U16 * share / top)
        self.weights[uid] = row
        self._updated[uid] = self.block
        return WeightsOutcome(status=WeightsStatus.SET, message=f"set in block {self.block}", block=self.block)

    async def run(self) -> None:
        """Pay every tempo, until cancelled."""
        while True:
            await asyncio.sleep(TEMPO * BLOCK_SECONDS)
            self._pay()

    def _pay(self) -> None:
        graph, owner = self.metagraph, self.metagraph.owner_uid
        done = yuma.epoch(
            yuma.Inputs(
                stake=np.array(graph.stake) * 1e9,
                weights=self.weights,
                present=self.weights > 0,
                bonds=self._bonds,
                permits=np.array(graph.validator_permit),
                last_update=self._updated,
                registered=self._registered,
                block=self.block,
                rao=RAO_A_BLOCK * TEMPO,
                owner=owner,
                last_step=max(0, self.block - TEMPO),
            ),
            HYPERPARAMETERS,
        )
        self._bonds = done.bonds.astype(np.float64)
        self.paid.append(Paid(block=self.block, incentive=_shares(done.incentive), dividends=_shares(done.dividends)))


def _shares(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[float, ...]:
    return tuple((values / yuma.U16).tolist())


def _metagraph(hotkeys: tuple[str, ...], validators: frozenset[int], stakes: Mapping[int, float]) -> Metagraph:
    uids = range(len(hotkeys))
    zeros = (0.0,) * len(hotkeys)
    return Metagraph(
        netuid=1,
        mechid=0,
        block=1,
        tempo=TEMPO,
        hotkeys=hotkeys,
        coldkeys=hotkeys,
        stake=tuple(stakes.get(uid, STAKE) if uid in validators else 0.0 for uid in uids),
        validator_permit=tuple(uid in validators for uid in uids),
        axons=tuple(None if uid == OWNER else wire.address(uid) for uid in uids),
        last_update=(1,) * len(hotkeys),
        registered_at=(0,) * len(hotkeys),
        incentive=zeros,
        dividends=zeros,
        emission=zeros,
        weights_version=0,
        weights_rate_limit=5,
        min_allowed_weights=1,
        max_weights_limit=yuma.U16,
        max_uids=len(hotkeys),
        owner_hotkey=hotkeys[OWNER],
    )
