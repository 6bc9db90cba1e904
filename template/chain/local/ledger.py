"""The chain file: SQLite in WAL mode, opened by any number of processes at once.

`storage` is a versioned key-value store of decoded values: a row holds from its block on until a later row of the
same key, so every past block stays readable. All writing happens inside `Ledger.transaction` (BEGIN IMMEDIATE: one
writer at a time, the others wait at most `BUSY_SECONDS`), so a killed process leaves whole extrinsics or nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from template.chain.local.clock import BlockClock
from template.clock import Clock, SystemClock
from template.errors import ChainUnavailable

APPLICATION_ID = 0x44544C43
FORMAT = 1
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE chain (
    genesis REAL NOT NULL, block_seconds REAL NOT NULL, manual_head INTEGER,
    last_written INTEGER NOT NULL, next_epoch INTEGER
);
CREATE TABLE storage (
    pallet TEXT NOT NULL, item TEXT NOT NULL, key TEXT NOT NULL, block INTEGER NOT NULL, value TEXT,
    PRIMARY KEY (pallet, item, key, block)
) WITHOUT ROWID;
CREATE TABLE extrinsics (
    block INTEGER NOT NULL, position INTEGER NOT NULL, hash TEXT NOT NULL UNIQUE, call TEXT NOT NULL,
    signer TEXT, nonce INTEGER, error TEXT,
    PRIMARY KEY (block, position), UNIQUE (signer, nonce)
);
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, block INTEGER NOT NULL, extrinsic INTEGER,
    module TEXT NOT NULL, name TEXT NOT NULL, attributes TEXT NOT NULL
);
CREATE INDEX events_by_block ON events (block);
CREATE TABLE shielded (
    signer TEXT NOT NULL, nonce INTEGER NOT NULL, hash TEXT NOT NULL, call TEXT NOT NULL,
    PRIMARY KEY (signer, nonce)
);
"""


class Ledger:
    """One process's connection to a chain file. Use it from one thread."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self.clock = clock or SystemClock()
        self._db: sqlite3.Connection | None = None

    @property
    def db(self) -> sqlite3.Connection:
        """The open connection.

        Raises:
            ChainUnavailable: `open` was not called, or `close` was.
        """
        if self._db is None:
            raise ChainUnavailable(f"the chain file {self.path} is not open")
        return self._db

    def open(self) -> None:
        """Open the file. Idempotent.

        Raises:
            ChainUnavailable: there is no file, or it is not an embedded chain of this format.
        """
        if self._db is not None:
            return
        if not self.path.is_file():
            raise ChainUnavailable(
                f"no chain file at {self.path}; create it with: python -m template.chain.local create {self.path}"
            )
        db = _connect(self.path)
        try:
            _check_format(db, self.path)
        except ChainUnavailable:
            db.close()
            raise
        db.execute("PRAGMA synchronous = NORMAL")  # in WAL mode sound after any crash of a process
        self._db = db

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Ledger:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything inside is written together or, if it raises, not at all."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def block_clock(self) -> BlockClock:
        """The block clock as the file has it now."""
        return BlockClock(
            *self.db.execute("SELECT genesis, block_seconds, manual_head, last_written FROM chain").fetchone()
        )

    def head(self) -> int:
        """The newest readable block."""
        return self.block_clock().head(self.clock.time())


def initialise(path: Path, *, genesis: float, block_seconds: float, manual: bool) -> None:
    """Write an empty chain at block 0 into a new file."""
    db = _connect(path)
    try:
        db.execute("PRAGMA journal_mode = WAL")  # kept in the file
        db.executescript(SCHEMA)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("INSERT INTO chain VALUES (?, ?, ?, 0, NULL)", (genesis, block_seconds, 0 if manual else None))
    finally:
        db.close()


def next_epoch(db: sqlite3.Connection) -> int | None:
    """The block of the next epoch of any subnet; None if none is scheduled."""
    block: int | None = db.execute("SELECT next_epoch FROM chain").fetchone()[0]
    return block


def set_next_epoch(db: sqlite3.Connection, block: int | None) -> None:
    db.execute("UPDATE chain SET next_epoch = ?", (block,))


def seal(db: sqlite3.Connection, block: int) -> None:
    """`block` has content now; on the manual clock it becomes the head."""
    db.execute("UPDATE chain SET last_written = max(last_written, ?)", (block,))
    db.execute("UPDATE chain SET manual_head = max(manual_head, ?) WHERE manual_head IS NOT NULL", (block,))


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    try:
        marks = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    except sqlite3.DatabaseError as error:
        raise ChainUnavailable(f"{path} cannot be read as a chain file: {error}") from error
    if marks != (APPLICATION_ID, FORMAT):
        raise ChainUnavailable(f"{path} is not an embedded chain of format {FORMAT}; create a new one")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
