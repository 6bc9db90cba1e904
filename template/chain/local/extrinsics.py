"""Putting calls into blocks: nonces, the MEV shield's inner call, root calls, and receipts.

An extrinsic is executed at once in the open block (the one after the head) and becomes visible when that block is the
head. If the block would begin before the transaction is written, everything is undone and the next block is taken, so
a block never changes after it could be read.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from bittensor import ChainError

from template.chain.local import accounts, epoch, ledger, runtime
from template.chain.local.dispatch import Call, DispatchError
from template.chain.local.ledger import Ledger
from template.chain.local.state import LATEST, State
from template.errors import ChainUnavailable

MAX_BLOCKS_MISSED = 50
CARRIER = ("MevShield", "submit_encrypted")

T = TypeVar("T")


@dataclass(frozen=True)
class Signed:
    """A call with the signer, nonce and hash under which it is looked up."""

    call: Call
    signer: str
    nonce: int
    hash: str


@dataclass(frozen=True)
class Receipt:
    """Where an extrinsic went and what came of it: `error` is the pallet's name for it, None on success."""

    block: int
    position: int
    error: str | None


class BadNonce(ChainError):
    """The nonce is not the signer's next: `Stale` (used) or `Future`."""

    def __init__(self, given: int, expected: int) -> None:
        name = "Stale" if given < expected else "Future"
        text = "Transaction is outdated" if name == "Stale" else "Transaction will be valid in the future"
        super().__init__(f"{text}: nonce {given}, the account is at {expected}", name)


class _BlockMissed(Exception):
    """The block was the head before the transaction could be written."""


def next_nonce(db: sqlite3.Connection, signer: str) -> int:
    """The next nonce, counting what is written but not yet visible."""
    return int(accounts.account(State(db, LATEST), signer)["nonce"])


def payload_of(call: Call, signer: str, nonce: int, genesis_hash: str) -> bytes:
    """The bytes a signer signs: call, signer, nonce and chain."""
    return call.data + json.dumps([signer, nonce, genesis_hash]).encode()


def hash_of(signed: bytes) -> str:
    return "0x" + hashlib.blake2b(signed, digest_size=32).hexdigest()


def stash_shielded(chain: Ledger, inner: Signed) -> None:
    """Keep the call inside an envelope until its carrier arrives; nobody can decrypt here, so it is found by nonce."""
    row = (inner.signer, inner.nonce, inner.hash, inner.call.data.decode())
    with chain.transaction() as db:
        db.execute("INSERT OR REPLACE INTO shielded VALUES (?, ?, ?, ?)", row)


def submit(chain: Ledger, extrinsic: Signed) -> Receipt:
    """Execute in the open block.

    Raises:
        BadNonce: nothing was written.
        ChainError: the call needs something the embedded chain does not implement; nothing was written.
    """

    def work(block: int) -> Receipt:
        receipt = _apply(State(chain.db, block), extrinsic)
        if (extrinsic.call.module, extrinsic.call.function) == CARRIER:
            _open_envelope(State(chain.db, block), extrinsic)
        return receipt

    return in_open_block(chain, work)


def execute_unsigned(state: State, call: Call, origin: str | None) -> Receipt:
    """One call as `origin` (None: root) in `state`'s block, inside the caller's transaction; uses no nonce."""
    position = _next_position(state)
    digest = hash_of(f"{state.block}-{position}".encode())
    return _execute(state, call, origin, position, (digest, None, None))


def in_open_block(chain: Ledger, work: Callable[[int], T]) -> T:
    """Call `work(block)` in a transaction that is written before `block` becomes the head."""
    for _ in range(MAX_BLOCKS_MISSED):
        epoch.catch_up(chain, chain.block_clock().open_block(chain.clock.time()))
        try:
            with chain.transaction() as db:
                return _attempt(chain, db, work)
        except _BlockMissed:
            continue
    raise ChainUnavailable(f"{chain.path}: {MAX_BLOCKS_MISSED} blocks passed before one call could be written")


def find(db: sqlite3.Connection, extrinsic_hash: str, block: int) -> Receipt | None:
    """The receipt of the extrinsic of that hash, if it is in that block."""
    row = db.execute(
        "SELECT block, position, error FROM extrinsics WHERE hash = ? AND block = ?", (extrinsic_hash, block)
    ).fetchone()
    return Receipt(*row) if row else None


def events(db: sqlite3.Connection, block: int, position: int | None = None) -> list[dict[str, Any]]:
    """Decoded `System.Events` of a block, or of one extrinsic in it."""
    rows = db.execute(
        "SELECT extrinsic, module, name, attributes FROM events WHERE block = ? ORDER BY sequence", (block,)
    )
    return [_event(*row) for row in rows if position is None or row[0] == position]


def calls_in(db: sqlite3.Connection, block: int) -> list[tuple[Call, str | None]]:
    """The calls of a block with their signers (None: root), in order."""
    rows = db.execute("SELECT call, signer FROM extrinsics WHERE block = ? ORDER BY position", (block,))
    return [(Call.from_data(call), signer) for call, signer in rows]


def _event(extrinsic: int | None, module: str, name: str, attributes: str) -> dict[str, Any]:
    body = {"module_id": module, "event_id": name, "attributes": json.loads(attributes)}
    phase = "Initialization" if extrinsic is None else "ApplyExtrinsic"
    return {"phase": phase, "extrinsic_idx": extrinsic, **body, "event": body, "topics": []}


def _attempt(chain: Ledger, db: sqlite3.Connection, work: Callable[[int], T]) -> T:
    clock = chain.block_clock()
    block = clock.open_block(chain.clock.time())
    if not epoch.run_due(chain, block, epoch.EPOCHS_PER_TRANSACTION):
        raise _BlockMissed
    result = work(block)
    epoch.reschedule(State(db, block))
    if clock.head(chain.clock.time()) >= block:
        raise _BlockMissed
    ledger.seal(db, block)
    return result


def _apply(state: State, extrinsic: Signed) -> Receipt:
    expected = next_nonce(state.db, extrinsic.signer)
    if extrinsic.nonce != expected:
        raise BadNonce(extrinsic.nonce, expected)
    accounts.use_nonce(state, extrinsic.signer)
    identity = (extrinsic.hash, extrinsic.signer, extrinsic.nonce)
    return _execute(state, extrinsic.call, extrinsic.signer, _next_position(state), identity)


def _open_envelope(state: State, carrier: Signed) -> None:
    row = state.db.execute(
        "SELECT hash, call FROM shielded WHERE signer = ? AND nonce = ?", (carrier.signer, carrier.nonce + 1)
    ).fetchone()
    state.db.execute("DELETE FROM shielded WHERE signer = ? AND nonce <= ?", (carrier.signer, carrier.nonce + 1))
    if row is None:
        raise ChainError("the embedded chain opens only envelopes whose call was signed through it")
    _apply(state, Signed(Call.from_data(row[1]), carrier.signer, carrier.nonce + 1, row[0]))


def _next_position(state: State) -> int:
    """Extrinsics count from 1: 0 is the timestamp."""
    row = state.db.execute("SELECT max(position) FROM extrinsics WHERE block = ?", (state.block,)).fetchone()
    return 1 + int(row[0] or 0)


def _execute(
    state: State, call: Call, origin: str | None, position: int, identity: tuple[str, str | None, int | None]
) -> Receipt:
    error: str | None = None
    try:
        runtime.execute(state, call, origin, position)
    except DispatchError as refused:
        error = refused.name
    state.emit("System", "ExtrinsicFailed" if error else "ExtrinsicSuccess", {}, position)
    digest, signer, nonce = identity
    state.db.execute(
        "INSERT INTO extrinsics VALUES (?, ?, ?, ?, ?, ?, ?)",
        (state.block, position, digest, call.data.decode(), signer, nonce, error),
    )
    return Receipt(state.block, position, error)
