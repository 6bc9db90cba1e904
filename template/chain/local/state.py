"""The storage as one block sees it, and events raised while that block runs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bittensor import ChainError

from template.chain.local import items
from template.chain.local.items import SUBTENSOR

Key = str | int
# Steps from key to key instead of through all versions of each, whose number grows with the chain's age.
ENTRIES = """
WITH RECURSIVE keys (key) AS (
    SELECT min(key) FROM storage WHERE pallet = :pallet AND item = :item AND key >= :start AND key < :end
    UNION ALL
    SELECT (SELECT min(key) FROM storage
            WHERE pallet = :pallet AND item = :item AND key > keys.key AND key < :end)
    FROM keys WHERE keys.key IS NOT NULL
)
SELECT key, (SELECT value FROM storage
             WHERE pallet = :pallet AND item = :item AND key = keys.key AND block <= :block
             ORDER BY block DESC LIMIT 1)
FROM keys WHERE key IS NOT NULL
"""
LATEST = 2**62  # a block number after every other: reads what is written but not yet visible


class State:
    """Reads see the newest value at or before `block`; writes belong to `block`."""

    def __init__(self, db: sqlite3.Connection, block: int) -> None:
        self.db = db
        self.block = block

    def get(self, item: str, *key: Key, pallet: str = SUBTENSOR) -> Any:
        """The decoded value, or the pallet's default.

        Raises:
            ChainError: no such item, or the wrong number of keys.
        """
        kind = items.find(pallet, item)
        _check_keys(pallet, item, len(key), kind.keys, exact=True)
        row = self.db.execute(
            "SELECT value FROM storage WHERE pallet = ? AND item = ? AND key = ? AND block <= ? "
            "ORDER BY block DESC LIMIT 1",
            (pallet, item, _encode(key), self.block),
        ).fetchone()
        if row is None or row[0] is None:
            return items.default_of(kind)
        return json.loads(row[0])

    def put(self, item: str, *key: Key, value: Any, pallet: str = SUBTENSOR) -> None:
        """Store `value` from this block on; None removes the entry."""
        _check_keys(pallet, item, len(key), items.find(pallet, item).keys, exact=True)
        text = None if value is None else json.dumps(value, separators=(",", ":"))
        self.db.execute(
            "INSERT OR REPLACE INTO storage VALUES (?, ?, ?, ?, ?)", (pallet, item, _encode(key), self.block, text)
        )

    def entries(self, item: str, *prefix: Key, pallet: str = SUBTENSOR) -> list[tuple[tuple[Key, ...], Any]]:
        """All stored entries under a prefix, in the order of their keys; each with the rest of its key."""
        _check_keys(pallet, item, len(prefix), items.find(pallet, item).keys, exact=False)
        start = _encode(prefix) + "," if prefix else ""
        end = _encode(prefix) + "-" if prefix else "\U0010ffff"  # '-' follows ',' in ASCII
        where = {"pallet": pallet, "item": item, "start": start, "end": end, "block": self.block}
        rows = self.db.execute(ENTRIES, where)
        found = [(tuple(json.loads(f"[{key}]"))[len(prefix) :], json.loads(value)) for key, value in rows if value]
        return sorted(found, key=lambda entry: entry[0])

    def vector(self, item: str, index: int, length: int, fill: Any = 0) -> list[Any]:
        """A per-uid vector cut or filled to `length`."""
        stored: list[Any] = self.get(item, index)
        return (stored + [fill] * length)[:length]

    def put_at(self, item: str, index: int, uid: int, value: Any, fill: Any = 0) -> None:
        """Set one place of a per-uid vector, growing it if needed."""
        stored = self.get(item, index)
        stored = stored + [fill] * (uid + 1 - len(stored))
        stored[uid] = value
        self.put(item, index, value=stored)

    def emit(self, module: str, name: str, attributes: Any, extrinsic: int | None = None) -> None:
        """Record an event of this block."""
        self.db.execute(
            "INSERT INTO events (block, extrinsic, module, name, attributes) VALUES (?, ?, ?, ?, ?)",
            (self.block, extrinsic, module, name, json.dumps(attributes)),
        )

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Undo what is written inside if it raises. Can be nested."""
        self.db.execute("SAVEPOINT dispatch")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK TO dispatch")
            self.db.execute("RELEASE dispatch")
            raise
        self.db.execute("RELEASE dispatch")


def _encode(key: tuple[Key, ...]) -> str:
    return json.dumps(key, separators=(",", ":"))[1:-1]


def _check_keys(pallet: str, item: str, given: int, wanted: int, *, exact: bool) -> None:
    if given == wanted or (given < wanted and not exact):
        return
    raise ChainError(f"the storage item {pallet}.{item} has {wanted} keys; {given} were given")
