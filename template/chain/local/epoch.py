"""Epochs: when they are due, what Yuma gets to see of the storage, and what is written and paid afterwards.

Between epochs nothing is written for a block that has no extrinsics; prices and pending emission follow from the
block number. Root dividends and TAO flows are not implemented: all alpha of a block goes to owner, miners, validators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from template.chain.local import ledger, neurons, stake, yuma
from template.chain.local.items import NOBODY, PRIVATE, RAO, U16
from template.chain.local.ledger import Ledger
from template.chain.local.state import State

OWNER_CUT = 11796  # of 65535: 18 %
EPOCHS_PER_TRANSACTION = 32  # so that a chain that slept for long does not lock out the others while it catches up
SHARED = ("consensus", "dividends", "validator_trust", "stake_weight", "emission")


@dataclass(frozen=True)
class Pending:
    """Alpha that waits for the epoch, in rao."""

    owner: int
    server: int
    validator: int


def pending(state: State, netuid: int) -> Pending:
    """One alpha a block since the last payment: 18 % owner, the rest half miners, half validators."""
    if not state.get("SubtokenEnabled", netuid):
        return Pending(0, 0, 0)
    blocks = state.block - state.get("EmissionPaidTo", netuid, pallet=PRIVATE)
    cut = RAO * OWNER_CUT // U16
    server = (RAO - cut) // 2
    return Pending(cut * blocks, server * blocks, (RAO - cut - server) * blocks)


def subnets(state: State) -> list[int]:
    """Netuids of all subnets but root."""
    return [int(key[0]) for key, added in state.entries("NetworksAdded") if added and key[0]]


def next_epoch_of(state: State, netuid: int) -> int | None:
    """The block of the subnet's next epoch as seen from this block; None with tempo 0."""
    tempo = state.get("Tempo", netuid)
    if not tempo:
        return None
    due = state.get("LastEpochBlock", netuid) + tempo
    asked = state.get("PendingEpochAt", netuid)
    return int(max(min(due, asked) if asked else due, state.block + 1))


def reschedule(state: State) -> None:
    """Note the next block at which any epoch is due."""
    due = [block for netuid in subnets(state) if (block := next_epoch_of(state, netuid)) is not None]
    ledger.set_next_epoch(state.db, min(due, default=None))


def catch_up(chain: Ledger, block: int) -> None:
    """Run the epochs due up to `block`, in as many transactions as it takes."""
    while (due := ledger.next_epoch(chain.db)) is not None and due <= block:
        with chain.transaction():
            run_due(chain, block, EPOCHS_PER_TRANSACTION)


def run_due(chain: Ledger, block: int, at_most: int) -> bool:
    """Run epochs due up to `block` inside the caller's transaction; whether none is left."""
    for _ in range(at_most):
        due = ledger.next_epoch(chain.db)
        if due is None or due > block:
            return True
        state = State(chain.db, due)
        for netuid in subnets(state):
            if _is_due(state, netuid):
                run_epoch(state, netuid)
        reschedule(state)
    due = ledger.next_epoch(chain.db)
    return due is None or due > block


def _is_due(state: State, netuid: int) -> bool:
    due = next_epoch_of(State(state.db, state.block - 1), netuid)
    return due is not None and due <= state.block


def run_epoch(state: State, netuid: int) -> None:
    """Consensus of every mechanism, then the payments."""
    waiting = pending(state, netuid)
    total = waiting.server + waiting.validator
    indexes = neurons.mechanisms(state, netuid)
    split = state.get("MechanismEmissionSplit", netuid)
    parts = yuma.split_emission(total, len(indexes), split)
    outcomes = [_consensus(state, netuid, index, rao) for index, rao in zip(indexes, parts, strict=True)]
    for index, outcome in zip(indexes, outcomes, strict=True):
        _store_mechanism(state, index, outcome)
    shares = [rao / total if total else float(index == indexes[0]) for index, rao in zip(indexes, parts, strict=True)]
    _store_subnet(state, netuid, outcomes, shares)
    _pay(state, netuid, waiting, outcomes)
    _finish(state, netuid, indexes)


def _consensus(state: State, netuid: int, index: int, rao: int) -> yuma.Outcome:
    keys = neurons.hotkeys(state, netuid)
    count = len(keys)
    weights, present = _matrix(state, "Weights", index, count)
    bonds, _ = _matrix(state, "Bonds", index, count)
    registered = [state.get("BlockAtRegistration", netuid, uid) for uid in range(count)]
    inputs = yuma.Inputs(
        stake=np.asarray(stake.alpha_of(state, netuid, keys), np.float64),
        weights=weights,
        present=present,
        bonds=bonds,
        permits=np.asarray(state.vector("ValidatorPermit", netuid, count, False), bool),
        last_update=np.asarray(state.vector("LastUpdate", index, count), np.int64),
        registered=np.asarray(registered, np.int64),
        block=state.block,
        rao=rao,
        owner=neurons.uid_of(state, netuid, state.get("SubnetOwnerHotkey", netuid)),
        last_step=state.get("LastMechansimStepBlock", netuid),
        commit_block=_commit_blocks(state, netuid, index, keys),
    )
    return yuma.epoch(inputs, _hyperparameters(state, netuid))


def _matrix(state: State, item: str, index: int, count: int) -> tuple[yuma.Floats, yuma.Bools]:
    values, present = np.zeros((count, count)), np.zeros((count, count), bool)
    for (row,), pairs in state.entries(item, index):
        for column, value in pairs:
            values[int(row), column], present[int(row), column] = value, True
    return values, present


def _commit_blocks(state: State, netuid: int, index: int, keys: list[str]) -> yuma.Ints | None:
    if not state.get("CommitRevealWeightsEnabled", netuid):
        return None
    oldest = {hotkey: np.iinfo(np.int64).max for hotkey in keys}
    for _, queue in state.entries("TimelockedWeightCommits", index):
        for hotkey, block, _, _ in queue:
            if hotkey in oldest:
                oldest[hotkey] = min(oldest[hotkey], block)
    return np.asarray(list(oldest.values()), np.int64)


def activity_cutoff(state: State, netuid: int) -> int:
    """Blocks after which a validator that set no weights is inactive."""
    return int(state.get("ActivityCutoffFactorMilli", netuid) * state.get("Tempo", netuid) // 1000)


def _hyperparameters(state: State, netuid: int) -> yuma.Hyperparameters:
    low, high = state.get("AlphaValues", netuid)
    return yuma.Hyperparameters(
        kappa=state.get("Kappa", netuid),
        bonds_moving_average=state.get("BondsMovingAverage", netuid),
        bonds_penalty=state.get("BondsPenalty", netuid),
        max_validators=state.get("MaxAllowedValidators", netuid),
        stake_threshold=state.get("StakeThreshold"),
        activity_cutoff=activity_cutoff(state, netuid),
        tempo=state.get("Tempo", netuid),
        yuma3=state.get("Yuma3On", netuid),
        liquid_alpha=state.get("LiquidAlphaOn", netuid),
        alpha_low=low,
        alpha_high=high,
        sigmoid_steepness=state.get("AlphaSigmoidSteepness", netuid),
    )


def _store_mechanism(state: State, index: int, outcome: yuma.Outcome) -> None:
    state.put("Incentive", index, value=outcome.incentive.tolist())
    for uid, row in enumerate(outcome.bonds.tolist()):
        kept = [[miner, bond] for miner, bond in enumerate(row) if bond]
        state.put("Bonds", index, uid, value=kept or None)


def _store_subnet(state: State, netuid: int, outcomes: list[yuma.Outcome], shares: list[float]) -> None:
    """Vectors of the whole subnet: sums weighted by each mechanism's share, permits and activity of any."""
    fields = {field: np.stack([getattr(outcome, field) for outcome in outcomes]) for field in SHARED}
    mixed = {f: (np.asarray(shares)[:, None] * values).sum(0).astype(np.int64) for f, values in fields.items()}
    items = ("Consensus", "Dividends", "ValidatorTrust", "StakeWeight", "Emission")
    for item, field in zip(items, SHARED, strict=True):
        state.put(item, netuid, value=[int(x) for x in mixed[field]])
    state.put("Active", netuid, value=np.any([o.active for o in outcomes], axis=0).tolist())
    state.put("ValidatorPermit", netuid, value=np.any([o.permits for o in outcomes], axis=0).tolist())


def _pay(state: State, netuid: int, waiting: Pending, outcomes: list[yuma.Outcome]) -> None:
    """Miners by incentive (the owner's is burned), validators and their stakers by dividends, the owner his cut."""
    server = [sum(amounts) for amounts in zip(*(o.server_emission for o in outcomes), strict=True)]
    validator = [sum(amounts) for amounts in zip(*(o.validator_emission for o in outcomes), strict=True)]
    pot = waiting.validator + (0 if any(server) else waiting.server)
    owner = state.get("SubnetOwnerHotkey", netuid)
    for uid, hotkey in enumerate(neurons.hotkeys(state, netuid)):
        if server[uid] and hotkey != owner:
            stake.add_alpha(state, netuid, hotkey, stake.owner_of(state, hotkey), server[uid])
        if validator[uid]:
            stake.pay_dividend(state, netuid, hotkey, pot * validator[uid] // sum(validator))
    if waiting.owner and owner != NOBODY:
        stake.add_alpha(state, netuid, owner, state.get("SubnetOwner", netuid), waiting.owner)


def _finish(state: State, netuid: int, indexes: list[int]) -> None:
    index = state.get("SubnetEpochIndex", netuid) + 1
    state.put("SubnetEpochIndex", netuid, value=index)
    state.put("LastEpochBlock", netuid, value=state.block)
    state.put("LastMechansimStepBlock", netuid, value=state.block)
    state.put("EmissionPaidTo", netuid, value=state.block, pallet=PRIVATE)
    state.put("PendingEpochAt", netuid, value=0)
    for mechanism in indexes:
        for (epoch,), _ in state.entries("TimelockedWeightCommits", mechanism):
            if int(epoch) < index - state.get("RevealPeriodEpochs", netuid):
                state.put("TimelockedWeightCommits", mechanism, epoch, value=None)
