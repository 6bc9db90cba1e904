"""LocalSubstrate: the SDK's `Substrate` protocol over a chain file.

No fees, no offline signing, no multisig, no metadata: what is missing raises ChainError. SQLite calls run on the
event loop; each takes about a millisecond, or up to `ledger.BUSY_SECONDS` while another process writes.
"""

from __future__ import annotations

import hashlib
import inspect
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bittensor import Balance, ChainError, ExtrinsicResult
from bittensor.result import ConnectionNotReady, RpcConnectionError
from bittensor.sp_core import verify

from template.chain.local import epoch, extrinsics, reads, runtime, runtime_api
from template.chain.local.dispatch import Call
from template.chain.local.extrinsics import BadNonce, Receipt, Signed
from template.chain.local.ledger import Ledger
from template.chain.local.names import message_of
from template.chain.local.state import State
from template.clock import Clock
from template.errors import ChainUnavailable

SPEC_VERSION = 469
SHIELD_KEY = bytes(1184)  # a well-formed ML-KEM-768 key; nobody decrypts with it
POLL_SECONDS = 0.25  # between looks at the head, at most
POLLS_PER_BLOCK = 4
GRACE_BLOCKS, GRACE_SECONDS = 4, 10.0  # how long an extrinsic's block may take to become the head
NONCE_ATTEMPTS = 64  # for one account used by several processes at once


class LocalSubstrate:
    """One process's view of a chain file. `connect` before use; `close` after."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.token_symbols: dict[int, str] = {}
        self.endpoint = f"local://{path}"
        self._chain = Ledger(path, clock)

    def balance(self, rao: int, netuid: int = 0) -> Balance:
        return Balance(int(rao), netuid, self.token_symbols.get(netuid) if netuid else None)

    async def connect(self) -> None:
        """Open the file.

        Raises:
            ChainUnavailable: it does not exist or is not an embedded chain.
        """
        self._chain.open()

    async def close(self) -> None:
        self._chain.close()

    # reads

    async def block_hash(self, block: int | None = None) -> str:
        """None for a block that is still to come: so a node answers, and the SDK waits by it, its type regardless."""
        with self._use() as chain:
            head = chain.head()
            number = head if block is None else block
            if number < 0:
                raise ChainError(f"there is no block {number}")
            return self._hash(number) if number <= head else None  # type: ignore[return-value]  # see above

    async def block_number(self) -> int:
        with self._use() as chain:
            return chain.head()

    async def finalized_block_number(self) -> int:
        return await self.block_number()

    async def block_time(self) -> float:
        with self._use() as chain:
            return chain.block_clock().block_seconds

    async def spec_version(self) -> int:
        return SPEC_VERSION

    async def get_block(self, block_number: int | None = None, block_hash: str | None = None) -> dict[str, Any] | None:
        with self._use() as chain:
            state = self._state(block_hash)
            number = state.block if block_number is None else block_number
            if not 0 <= number <= chain.head():
                return None
            stamp = chain.block_clock().timestamp_ms(number)
            inherent = _extrinsic(Call("Timestamp", "set", {"now": stamp}), None)
            calls = [_extrinsic(call, signer) for call, signer in extrinsics.calls_in(chain.db, number)]
            return {"header": self._header(number), "extrinsics": [inherent, *calls]}

    async def query(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> Any:
        with self._use() as chain:
            state = self._state(block_hash)
            if (module, storage_function) == ("Timestamp", "Now"):
                return chain.block_clock().timestamp_ms(state.block)
            return reads.read(state, module, storage_function, params or [])

    async def query_map(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> list[tuple[Any, Any]]:
        with self._use():
            return reads.read_map(self._state(block_hash), module, storage_function, params or [])

    async def query_batch(
        self, module: str, storage_function: str, param_sets: list[list[Any]], block_hash: str | None = None
    ) -> list[Any]:
        with self._use():
            state = self._state(block_hash)
            return [reads.read(state, module, storage_function, params) for params in param_sets]

    async def map_has_entries(
        self, module: str, storage_function: str, params: list[Any], block_hash: str | None = None
    ) -> bool:
        return bool(await self.query_map(module, storage_function, params, block_hash))

    async def runtime_call(self, api: str, method: str, params: Any, block_hash: str | None = None) -> Any:
        with self._use():
            return runtime_api.call(self._state(block_hash), api, method, params)

    async def constant(self, module: str, name: str) -> Any:
        return reads.constant(module, name, await self.block_time())

    async def events(self, block_hash: str | None = None) -> list[dict[str, Any]]:
        with self._use() as chain:
            return extrinsics.events(chain.db, self._state(block_hash).block)

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Every header from the current head on. A block is final as soon as it is the head."""
        seen = await self.block_number() - 1
        while True:
            with self._use() as chain:
                head = chain.head()
                headers = [self._header(number) for number in range(seen + 1, head + 1)]
            for header in headers:
                yield {"header": header}
            seen = max(seen, head)
            await self._pause()

    # calls

    async def compose(self, call: Any) -> Call:
        if isinstance(call, Call):
            return call
        module, function, params = call
        return runtime.compose(module, function, params)

    async def estimate_fee(self, call: Any, keypair: Any) -> Balance:
        """Nothing: the embedded chain takes no fees."""
        return Balance.from_rao(0)

    async def account_next_index(self, address: str) -> int:
        with self._use() as chain:
            return extrinsics.next_nonce(chain.db, address)

    async def mev_next_key(self) -> bytes:
        return SHIELD_KEY

    async def sign_extrinsic(self, call: Any, keypair: Any, *, nonce: int, period: int) -> tuple[bytes, str]:
        """Sign the inner call of an envelope and keep it until the carrier is submitted."""
        composed = await self.compose(call)
        signed = await self._sign(composed, keypair, nonce)
        inner = Signed(composed, keypair.ss58_address, nonce, extrinsics.hash_of(signed))
        with self._use() as chain:
            extrinsics.stash_shielded(chain, inner)
        return signed, inner.hash

    async def find_extrinsic(self, extrinsic_hash: str, block_hash: str) -> ExtrinsicResult | None:
        with self._use() as chain:
            receipt = extrinsics.find(chain.db, extrinsic_hash, self._state(block_hash).block)
            return self._result(receipt) if receipt else None

    async def submit(
        self,
        call: Any,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> ExtrinsicResult:
        """Sign, execute and, if asked, wait until the block is the head. A refusal is a result, not an exception."""
        try:
            receipt = await self._submit(await self.compose(call), keypair, nonce)
        except ChainError as error:
            return ExtrinsicResult(success=False, message=error.message, error=error)
        if not (wait_for_inclusion or wait_for_finalization):
            return ExtrinsicResult(success=True, message="Submitted (not waiting).")
        await self._reach(receipt.block)
        with self._use():
            return self._result(receipt)

    # not implemented

    async def decode_scale(self, type_string: str, data: Any) -> Any:
        raise _missing("SCALE decoding")

    async def estimate_weight(self, call: Any, keypair: Any) -> dict[str, Any]:
        raise _missing("weight estimation")

    async def prepare(self, call: Any, **_: Any) -> Any:
        raise _missing("offline signing")

    async def submit_signature(self, unsigned: Any, signature: Any, **_: Any) -> ExtrinsicResult:
        raise _missing("offline signing")

    async def submit_signed(self, extrinsic: Any, keypair: Any, **_: Any) -> ExtrinsicResult:
        raise _missing("submitting extrinsics signed elsewhere")

    def multisig_account(self, signatories: list[str], threshold: int) -> Any:
        raise _missing("multisig")

    async def submit_multisig(self, call: Any, keypair: Any, multisig_account: Any, **_: Any) -> ExtrinsicResult:
        raise _missing("multisig")

    # inside

    @contextmanager
    def _use(self) -> Iterator[Ledger]:
        """The chain file, with its failures told as the SDK tells those of a connection."""
        try:
            yield self._chain
        except sqlite3.Error as error:
            raise RpcConnectionError(f"{self._chain.path}: {error}") from error
        except ChainUnavailable as error:
            raise ConnectionNotReady(str(error)) from error

    def _state(self, block_hash: str | None) -> State:
        """The storage at a block (the head by default) with the epochs up to it done."""
        block = self._chain.head() if block_hash is None else self._number(block_hash)
        epoch.catch_up(self._chain, block)
        return State(self._chain.db, block)

    def _hash(self, block: int) -> str:
        """32 bytes of which the last 8 are the number: a hash leads back to its block without an index."""
        seed = f"{self._chain.block_clock().genesis!r}:{block}".encode()
        return "0x" + hashlib.blake2b(seed, digest_size=24).hexdigest() + f"{block:016x}"

    def _number(self, block_hash: str) -> int:
        try:
            number = int(block_hash[-16:], 16)
        except ValueError:
            number = -1
        if number < 0 or number > self._chain.head() or self._hash(number) != block_hash:
            raise ChainError(f"no block has the hash {block_hash}")
        return number

    def _header(self, number: int) -> dict[str, Any]:
        parent = self._hash(number - 1) if number else "0x" + "00" * 32
        return {"number": number, "hash": self._hash(number), "parentHash": parent}

    async def _sign(self, call: Call, keypair: Any, nonce: int) -> bytes:
        with self._use():
            payload = extrinsics.payload_of(call, keypair.ss58_address, nonce, self._hash(0))
        signature = keypair.sign(payload)
        if inspect.isawaitable(signature):
            signature = await signature
        if not verify(payload, bytes(signature), keypair.ss58_address, keypair.crypto_type):
            raise ChainError("Transaction has a bad signature", "BadProof")
        return payload + bytes(signature)

    async def _submit(self, call: Call, keypair: Any, nonce: int | None) -> Receipt:
        """Without a fixed nonce, take the next one, and again if another process was faster."""
        for attempt in range(NONCE_ATTEMPTS):
            number = await self.account_next_index(keypair.ss58_address) if nonce is None else nonce
            signed = await self._sign(call, keypair, number)
            extrinsic = Signed(call, keypair.ss58_address, number, extrinsics.hash_of(signed))
            try:
                with self._use() as chain:
                    return extrinsics.submit(chain, extrinsic)
            except BadNonce:
                if nonce is not None or attempt == NONCE_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _result(self, receipt: Receipt) -> ExtrinsicResult:
        place = f"{receipt.block}-{receipt.position:04d}"
        if receipt.error is not None:
            text = message_of(receipt.error)
            error = ChainError(text, receipt.error)
            return ExtrinsicResult(
                success=False, message=text, error=error, block_hash=self._hash(receipt.block), extrinsic_id=place
            )
        return ExtrinsicResult(
            success=True,
            message="Success",
            fee=Balance.from_rao(0),
            events=extrinsics.events(self._chain.db, receipt.block, receipt.position),
            block_hash=self._hash(receipt.block),
            extrinsic_id=place,
        )

    async def _reach(self, block: int) -> None:
        """Wait until `block` is the head; it is the next one or the one after."""
        clock = self._chain.clock
        deadline = clock.monotonic() + GRACE_BLOCKS * await self.block_time() + GRACE_SECONDS
        while await self.block_number() < block:
            if clock.monotonic() > deadline:
                raise RpcConnectionError(f"{self._chain.path}: block {block} does not come; was the clock set back?")
            await self._pause(until=block)

    async def _pause(self, until: int | None = None) -> None:
        """Sleep until the head may have moved."""
        with self._use() as chain:
            clock = chain.block_clock()
            seconds = min(POLL_SECONDS, clock.block_seconds / POLLS_PER_BLOCK)
            if until is not None:
                seconds = min(seconds, max(clock.seconds_until(until, chain.clock.time()), 0.001))
        await self._chain.clock.sleep(seconds)


def _extrinsic(call: Call, signer: str | None) -> dict[str, Any]:
    arguments = [{"name": name, "value": value} for name, value in call.params.items()]
    body = {"call_module": call.module, "call_function": call.function, "call_args": arguments}
    return {"call": body} if signer is None else {"address": signer, "call": body}


def _missing(what: str) -> ChainError:
    return ChainError(f"the embedded chain does not implement {what}")
