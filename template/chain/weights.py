"""From scores to what the chain accepts, and setting it. `process` is pure; `set_weights` talks to the chain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from bittensor import ChainError, Client, ErrorCode, ExtrinsicResult, SetWeights, Wallet
from bittensor.intents import normalize
from bittensor.intents.weights import clip_to_max_weight

from template.chain.faults import translated
from template.chain.metagraph import MECHANISM_STRIDE, U16
from template.errors import NotRegistered

QUANTUM = 1 / U16  # the smallest weight that survives quantisation, relative to the largest
NOT_VERIFIED = "not_verified"  # the code of weights that the chain took, and was not read to hold


class WeightsStatus(StrEnum):
    """What became of an attempt."""

    SET = "set"  # and read back
    COMMITTED = "committed"  # timelocked; the chain opens it at the reveal round
    REVEALED = "revealed"  # which it has done, and was read to hold what was committed
    RATE_LIMITED = "rate_limited"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class WeightsOutcome:
    """`block`: where they were set; `blocks_to_wait`: until the rate limit is over; `code`: why they were refused.

    `stored`: the u16 by uid that the chain was read to hold afterwards; empty if nothing was read.
    """

    status: WeightsStatus
    message: str
    block: int | None = None
    blocks_to_wait: int = 0
    code: str | None = None
    stored: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the chain holds of a hotkey: when it last set or committed weights (0: never), and the u16 by uid."""

    block: int
    row: Mapping[int, int]


def burn(owner_uid: int) -> dict[int, float]:
    """All weight to the owner, whose incentive the chain burns."""
    return {owner_uid: 1.0}


def process(
    weights: Mapping[int, float],
    *,
    uids: int,
    owner_uid: int | None,
    min_allowed: int = 1,
    max_limit: int = U16,
    last: Sequence[int] = (),
) -> dict[int, float]:
    """Shares that sum to 1 and that a subnet of `uids` neurons accepts.

    Nothing earned at all is burned. If the chain wants more entries than there are (`min_allowed`, or because no share
    may exceed `max_limit` of 65535), others get the smallest weight there is: the owner first, then by uid, and only
    then those of `last`. Shares over the limit are cut and the rest is spread over the others in proportion.

    Raises:
        ValueError: a weight is negative or not finite, a uid is not on the subnet, or nothing was earned and the owner
            has no uid.
    """
    for uid, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"the weight of uid {uid} is {weight}")
        if not 0 <= uid < uids:
            raise ValueError(f"uid {uid} is not one of the subnet's {uids}")
    total = sum(weights.values())
    if not total and owner_uid is None:
        raise ValueError("nothing was earned, and the owner has no uid to burn it with")
    shares = {u: w / total for u, w in weights.items() if w} if total or owner_uid is None else burn(owner_uid)
    top = max(shares.values())
    shares = {uid: share for uid, share in shares.items() if share / top >= QUANTUM / 2}
    limit = max_limit / U16
    first = () if owner_uid is None else (owner_uid,)
    order = (*first, *(uid for uid in range(uids) if uid not in last), *last)
    return _limited(_padded(shares, order, max(min_allowed, math.ceil(1 / limit))), limit)


def quantised(shares: Mapping[int, float], max_limit: int = U16) -> dict[int, int]:
    """The u16 by uid that the SDK makes of `shares` for a subnet of this limit: the largest becomes 65535."""
    uids = sorted(shares)
    values = [shares[uid] for uid in uids]
    if max_limit < U16:
        values = clip_to_max_weight(values, max_limit / U16)
    return dict(zip(*normalize(uids, values), strict=True))


def _padded(shares: Mapping[int, float], order: Sequence[int], wanted: int) -> dict[int, float]:
    padded, smallest = dict(shares), max(shares.values()) * QUANTUM
    for uid in order:
        if len(padded) >= wanted:
            break
        padded.setdefault(uid, smallest)
    return {uid: share / sum(padded.values()) for uid, share in padded.items()}


def _limited(shares: Mapping[int, float], limit: float) -> dict[int, float]:
    """No share over the limit, less what rounding to u16 may add; the excess goes to the others in proportion."""
    ceiling = limit if limit == 1 else limit * (1 - len(shares) / U16)
    if len(shares) * ceiling <= 1:
        return {uid: 1 / len(shares) for uid in shares}
    capped: set[int] = set()
    result = dict(shares)
    while over := {uid for uid, share in result.items() if share > ceiling and uid not in capped}:
        capped |= over
        rest = sum(share for uid, share in shares.items() if uid not in capped)
        scale = (1 - ceiling * len(capped)) / rest
        result = {uid: ceiling if uid in capped else share * scale for uid, share in shares.items()}
    return result


async def set_weights(
    client: Client, wallet: Wallet, netuid: int, weights: Mapping[int, float], *, mechid: int = 0, version_key: int
) -> WeightsOutcome:
    """Set the weights of the wallet's hotkey and read them back. Every refusal of the chain is an outcome.

    `weights` as `process` makes them.

    Raises:
        ChainUnavailable: no answer; the weights may be set or not.
        ChainRefused: they are all zero, or were set and could not be read back.
    """
    intent = SetWeights(netuid=netuid, mechid=mechid, weights=dict(weights), version_key=version_key)
    with translated(f"setting weights on subnet {netuid}"):
        try:
            result = await client.execute(intent, wallet)
        except ChainError as error:  # found by the SDK before anything was sent
            return await _refused(client, wallet, netuid, mechid, error)
        if not result.success:
            return await _refused(client, wallet, netuid, mechid, result.error or ChainError(result.message))
        return await _verified(client, wallet, netuid, mechid, weights, result)


async def _refused(client: Client, wallet: Wallet, netuid: int, mechid: int, error: ChainError) -> WeightsOutcome:
    text = f"{error.name}: {error.message}" if error.name else error.message
    if error.code is not ErrorCode.RATE_LIMITED:
        return WeightsOutcome(status=WeightsStatus.REFUSED, message=text, code=error.code.value)
    wait = await _blocks_to_wait(client, wallet.hotkey.ss58_address, netuid, mechid)
    return WeightsOutcome(
        status=WeightsStatus.RATE_LIMITED, message=text, code=error.code.value, blocks_to_wait=max(1, wait)
    )


async def _blocks_to_wait(client: Client, hotkey: str, netuid: int, mechid: int) -> int:
    view = await client.at()
    limit = int(await view.query(("SubtensorModule", "WeightsSetRateLimit"), [netuid]))
    return limit - (view.block - await _last_update(client, hotkey, netuid, mechid, view.block))


async def _last_update(client: Client, hotkey: str, netuid: int, mechid: int, block: int) -> int:
    view = await client.at(block)
    uid = await view.query(("SubtensorModule", "Uids"), [netuid, hotkey])
    updates = await view.query(("SubtensorModule", "LastUpdate"), [mechid * MECHANISM_STRIDE + netuid])
    return int(updates[uid]) if uid is not None and uid < len(updates) else 0


async def _verified(
    client: Client, wallet: Wallet, netuid: int, mechid: int, weights: Mapping[int, float], result: ExtrinsicResult
) -> WeightsOutcome:
    """Compare with what the chain now holds for this hotkey at the block of the extrinsic."""
    block, hotkey = int((result.extrinsic_id or "").partition("-")[0]), wallet.hotkey.ss58_address
    if "reveal_round" in result.data:
        return await _commit_verified(client, hotkey, netuid, mechid, block, int(result.data["reveal_round"]))
    held = await read_held(client, hotkey, netuid, mechid, block)
    if not agree(weights, held.row):
        text = f"block {block} holds other weights than were set"
        return WeightsOutcome(
            status=WeightsStatus.REFUSED, message=text, block=block, code=NOT_VERIFIED, stored=held.row
        )
    text = f"set in block {block}"
    return WeightsOutcome(status=WeightsStatus.SET, message=text, block=block, stored=held.row)


async def _commit_verified(
    client: Client, hotkey: str, netuid: int, mechid: int, block: int, reveal_round: int
) -> WeightsOutcome:
    commits = await client.read("timelocked_weight_commits", netuid=netuid, mechid=mechid)
    found = (commit for epoch in commits.values() for commit in epoch)
    if not any((c["hotkey"], c["commit_block"], c["reveal_round"]) == (hotkey, block, reveal_round) for c in found):
        text = f"the chain holds no commit of block {block} for drand round {reveal_round}"
        return WeightsOutcome(status=WeightsStatus.REFUSED, message=text, block=block, code=NOT_VERIFIED)
    text = f"committed in block {block}, revealed at drand round {reveal_round}"
    return WeightsOutcome(status=WeightsStatus.COMMITTED, message=text, block=block)


async def read_held(client: Client, hotkey: str, netuid: int, mechid: int = 0, block: int | None = None) -> Held:
    """The weights of a hotkey at `block`, or at the head.

    Raises:
        ChainUnavailable: no answer.
        NotRegistered: the hotkey has no uid.
    """
    index = mechid * MECHANISM_STRIDE + netuid
    with translated(f"reading the weights of subnet {netuid}"):
        view = await client.at(block)
        uid = await view.query(("SubtensorModule", "Uids"), [netuid, hotkey])
        if uid is None:
            raise NotRegistered(f"hotkey {hotkey} has no uid on subnet {netuid}")
        updates = await view.query(("SubtensorModule", "LastUpdate"), [index])
        row = await view.query(("SubtensorModule", "Weights"), [index, uid]) or ()
    last = int(updates[uid]) if uid < len(updates) else 0
    return Held(block=last, row={int(target): int(value) for target, value in row})


def agree(wanted: Mapping[int, float], stored: Mapping[int, int]) -> bool:
    """Whether the rows are the same up to the rounding to u16."""
    total, sum_stored = sum(wanted.values()), sum(stored.values())
    if not total or not sum_stored:
        return False
    tolerance = (len(wanted) + 1) / U16
    both = set(wanted) | set(stored)
    return all(abs(wanted.get(u, 0.0) / total - stored.get(u, 0) / sum_stored) <= tolerance for u in both)
