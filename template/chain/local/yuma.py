"""Yuma consensus: weights and stake of one mechanism in, incentive, dividends, bonds and emission out. Pure.

Follows the pallet's `epoch_mechanism` (v2 and v3): products and quotients are truncated to 2^-32 as its I32F32 does,
and what is stored is floor(x * 65535). Sums of such values are exact in float64 up to 2^21, a product may differ in its
last bit (2^-32). Shapes: n neurons; weights and bonds are [validator, miner].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U16 = 65535
ONE = 2.0**32

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The subnet's consensus settings in the chain's units (u16 fractions, millionths, blocks)."""

    kappa: int
    bonds_moving_average: int
    bonds_penalty: int
    max_validators: int
    stake_threshold: int
    activity_cutoff: int
    tempo: int
    yuma3: bool
    liquid_alpha: bool
    alpha_low: int
    alpha_high: int
    sigmoid_steepness: int


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one epoch of one mechanism reads.

    `stake` u64 [n]; `weights` u16 [n, n] with `present` [n, n] (listed, even if 0); `bonds` u16 [n, n]; `permits`
    as stored; `last_update` (of this mechanism) and `registered` in blocks; `rao` is the alpha to pay; `last_step`
    the block of the subnet's last epoch (0: none); `commit_block` the oldest unexpired commit of each uid, if
    commit-reveal is on.
    """

    stake: Floats
    weights: Floats
    present: Bools
    bonds: Floats
    permits: Bools
    last_update: Ints
    registered: Ints
    block: int
    rao: int
    owner: int | None = None
    last_step: int = 0
    commit_block: Ints | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """u16 vectors, except `active` and `permits` (bool) and the emissions (rao). `bonds` is u16 [n, n]."""

    active: Bools
    stake_weight: Ints
    consensus: Ints
    incentive: Ints
    dividends: Ints
    validator_trust: Ints
    permits: Bools
    bonds: Ints
    server_emission: tuple[int, ...]
    validator_emission: tuple[int, ...]
    emission: tuple[int, ...]


@dataclass(frozen=True)
class _Stake:
    all: Floats  # every uid over the threshold, sums to 1
    active: Floats  # of these, the active and permitted, sums to 1
    permits: Bools  # stored permits and the owner: valid this epoch
    next_permits: Bools
    active_mask: Bools


@dataclass(frozen=True)
class _Weights:
    rows: Floats  # W, rows sum to 1
    kept: Bools
    consensus: Floats  # C
    clipped: Floats  # min(W, C)
    for_bonds: Floats
    bond_present: Bools


def _truncate(x: Floats) -> Floats:
    return np.asarray(np.floor(x * ONE) / ONE, np.float64)


def _fraction(value: float, scale: float) -> float:
    return float(np.floor(value / scale * ONE) / ONE)


def _divide(a: Floats, b: Floats, otherwise: Floats) -> Floats:
    return _truncate(np.divide(a, b, out=otherwise.copy(), where=b > 0))


def _normalize(x: Floats) -> Floats:
    total = x.sum()
    return _truncate(x / total) if total > 0 else x.copy()


def _by_row(m: Floats) -> Floats:
    return _divide(m, np.broadcast_to(m.sum(1, keepdims=True), m.shape), np.zeros_like(m))


def _by_column(m: Floats) -> Floats:
    return _divide(m, np.broadcast_to(m.sum(0, keepdims=True), m.shape), np.zeros_like(m))


def _u16(x: Floats) -> Ints:
    return np.asarray(np.floor(_truncate(x * U16)), np.int64)


def _owner_mask(inputs: Inputs) -> Bools:
    return np.asarray(np.arange(len(inputs.stake)) == (-1 if inputs.owner is None else inputs.owner), bool)


def _top_stakes(stake: Floats, count: int) -> Bools:
    """The nonzero `count` largest; ties keep the higher uid."""
    chosen = stake > 0
    if len(stake) >= count:
        chosen[np.argsort(stake, kind="stable")[: len(stake) - count]] = False
    return chosen


def _stakes(inputs: Inputs, p: Hyperparameters) -> _Stake:
    owner = _owner_mask(inputs)
    inactive = inputs.last_update + p.activity_cutoff < inputs.block
    stake = _normalize(np.where((inputs.stake < p.stake_threshold) & ~owner, 0.0, inputs.stake))
    permits = inputs.permits | owner
    active = _normalize(np.where(inactive | ~permits, 0.0, stake))
    return _Stake(stake, active, permits, _top_stakes(stake, p.max_validators) | owner, ~inactive)


def _kept_weights(inputs: Inputs, permits: Bools) -> Bools:
    """Rows with a permit, no self weight but the owner's, nothing set before its target was registered."""
    n = len(inputs.stake)
    kept = inputs.present & permits[:, None] & (~np.eye(n, dtype=bool) | np.diag(_owner_mask(inputs)))
    kept &= ~(inputs.last_update[:, None] <= inputs.registered[None, :])
    if inputs.commit_block is not None:
        kept &= ~(inputs.commit_block[:, None] < inputs.registered[None, :])
    return np.asarray(kept, bool)


def _weighted_median(stake: Floats, weights: Floats, kappa: float) -> Floats:
    """Per column the smallest weight whose cumulative stake, in ascending order, exceeds sum(stake) - kappa."""
    rows = stake > 0
    consensus = np.zeros(weights.shape[1])
    if not rows.any():
        return consensus
    share, columns = _normalize(stake[rows]), weights[rows]
    for j in range(weights.shape[1]):
        order = np.argsort(columns[:, j], kind="stable")
        column, cumulative = columns[order, j], np.cumsum(share[order])
        last_of_tie = np.append(column[1:] != column[:-1], True)
        first = int(np.searchsorted(cumulative[last_of_tie], share.sum() - kappa, side="right"))
        consensus[j] = column[last_of_tie][min(first, int(last_of_tie.sum()) - 1)]
    return consensus


def _consensus(inputs: Inputs, stake: _Stake, p: Hyperparameters) -> _Weights:
    kept = _kept_weights(inputs, stake.permits)
    rows = _by_row(np.where(kept, inputs.weights, 0.0))
    consensus = _weighted_median(stake.active, rows, _fraction(p.kappa, U16))
    clipped = np.minimum(rows, consensus)
    penalty = _fraction(p.bonds_penalty, U16)
    if penalty == 0:
        return _Weights(rows, kept, consensus, clipped, rows, kept)
    if penalty == 1:
        present = kept & ~((consensus < rows) & (consensus <= 0))
        return _Weights(rows, kept, consensus, clipped, np.where(present, clipped, 0.0), present)
    mixed = rows + _truncate(penalty * (clipped - rows))
    return _Weights(rows, kept, consensus, clipped, mixed, mixed > 0)


def _carried_bonds(inputs: Inputs, p: Hyperparameters) -> Floats:
    """The stored bonds without the columns of uids registered since the last epoch."""
    last_tempo = inputs.block - p.tempo if inputs.last_step == 0 else inputs.last_step + 1
    return np.where((last_tempo <= inputs.registered)[None, :], 0.0, inputs.bonds)


def _bonds_v2(carried: Floats, weights: _Weights, stake: _Stake, alpha: float) -> Floats:
    delta = _by_column(_truncate(weights.for_bonds * stake.active[:, None]))
    return _by_column(_truncate(alpha * delta) + _truncate((1 - alpha) * _by_column(carried)))


def _liquid_alpha(bonds: Floats, weights: _Weights, p: Hyperparameters) -> Floats:
    """The moving average's rate of each pair: a sigmoid of how far the weight is from consensus."""
    low, high = _fraction(p.alpha_low, U16), _fraction(p.alpha_high, U16)
    w = weights.for_bonds
    difference = np.where(w >= bonds, np.clip(w - weights.consensus, 0, 1), np.clip(bonds - w, 0, 1))
    steep = np.clip(-(p.sigmoid_steepness / 100.0) * (difference - 0.5), -20, 20)
    return np.clip(_truncate(low + (high - low) / (1.0 + np.exp(steep))), low, high)


def _bonds_v3(carried: Floats, weights: _Weights, p: Hyperparameters, alpha: float) -> Floats:
    bonds = _truncate(carried / U16)
    if not (p.liquid_alpha and weights.consensus.any()):
        return _truncate(alpha * weights.for_bonds) + _truncate((1 - alpha) * bonds)
    rate = _liquid_alpha(bonds, weights, p)
    average = np.minimum(1.0, _truncate((1 - rate) * bonds) + _truncate(rate * weights.for_bonds))
    return np.where(weights.bond_present, average, 0.0)  # as the pallet: a pair absent from the row loses its bond


def _dividends(
    inputs: Inputs, weights: _Weights, stake: _Stake, incentive: Floats, p: Hyperparameters
) -> tuple[Floats, Floats]:
    """Dividends [n] and the bonds [n, n] to store, as fractions of 65535."""
    carried = _carried_bonds(inputs, p)
    alpha = 1.0 - _fraction(p.bonds_moving_average, 1e6)
    if p.yuma3:
        bonds = _bonds_v3(carried, weights, p, alpha)
        earned = _truncate(_truncate(_by_column(bonds) * incentive).sum(1) * stake.active)
        return _normalize(earned), bonds
    bonds = _bonds_v2(carried, weights, stake, alpha)
    top = np.broadcast_to(bonds.max(0, keepdims=True), bonds.shape)
    return _normalize(_truncate(bonds * incentive).sum(1)), _divide(bonds, top, bonds)


def _pay(share: Floats, rao: int) -> tuple[int, ...]:
    return tuple((int(x * ONE) * rao) >> 32 for x in share)


def epoch(inputs: Inputs, p: Hyperparameters) -> Outcome:
    """One mechanism, one epoch. Nobody scored: the alpha goes to the (active) stake."""
    if len(inputs.stake) == 0:
        raise ValueError("an epoch needs at least one neuron")
    stake = _stakes(inputs, p)
    weights = _consensus(inputs, stake, p)
    incentive = _normalize(_truncate(weights.clipped * stake.active[:, None]).sum(0))
    dividends, bonds = _dividends(inputs, weights, stake, incentive, p)
    total = (incentive + dividends).sum()
    if total == 0:
        server, validator = incentive, stake.active if stake.active.any() else stake.all
        combined = validator
    else:
        server, validator = _truncate(incentive / total), _truncate(dividends / total)
        combined = _normalize(incentive + dividends)
    return Outcome(
        active=stake.active_mask,
        stake_weight=_u16(stake.all),
        consensus=_u16(weights.consensus),
        incentive=_u16(incentive),
        dividends=_u16(dividends),
        validator_trust=_u16(weights.clipped.sum(1)),
        permits=stake.next_permits,
        bonds=np.where(stake.next_permits[:, None], _u16(bonds), 0),
        server_emission=_pay(server, inputs.rao),
        validator_emission=_pay(validator, inputs.rao),
        emission=_pay(combined, inputs.rao),
    )


def split_emission(alpha: int, count: int, split: list[int] | None) -> list[int]:
    """The alpha of each mechanism. `split`: u16 shares summing to 65535; None: even. Rounding goes to mechanism 0."""
    shares = [alpha // count] * count if split is None else [alpha * share // U16 for share in split]
    shares = (shares + [0] * count)[:count]
    shares[0] += alpha - sum(shares)
    return shares
