"""The versioned storage and the file under it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from bittensor import ChainError

from template.chain.local import ledger
from template.chain.local.ledger import Ledger
from template.chain.local.state import State
from template.errors import ChainUnavailable


@pytest.fixture
def chain(tmp_path: Path) -> Ledger:
    path = tmp_path / "chain.db"
    ledger.initialise(path, genesis=0.0, block_seconds=1.0, manual=True)
    opened = Ledger(path)
    opened.open()
    return opened


def test_a_value_holds_from_its_block_on(chain: Ledger) -> None:
    """Earlier blocks keep what they had."""
    State(chain.db, 5).put("Tempo", 1, value=10)
    State(chain.db, 9).put("Tempo", 1, value=20)
    assert [State(chain.db, block).get("Tempo", 1) for block in (4, 5, 8, 9, 99)] == [360, 10, 10, 20, 20]


def test_removal_is_a_version_too(chain: Ledger) -> None:
    """A removed entry is absent from its block on and present before."""
    State(chain.db, 1).put("Uids", 1, "hot", value=3)
    State(chain.db, 2).put("Uids", 1, "hot", value=None)
    assert (State(chain.db, 1).get("Uids", 1, "hot"), State(chain.db, 2).get("Uids", 1, "hot")) == (3, None)
    assert State(chain.db, 1).entries("Uids", 1) == [(("hot",), 3)]
    assert State(chain.db, 2).entries("Uids", 1) == []


def test_prefixes_do_not_run_into_each_other(chain: Ledger) -> None:
    """Subnet 1 is not subnet 11, and keys come in their order."""
    state = State(chain.db, 1)
    for netuid, uid in ((1, 2), (1, 10), (11, 3), (1, 1)):
        state.put("Weights", netuid, uid, value=[[0, uid]])
    assert state.entries("Weights", 1) == [((1,), [[0, 1]]), ((2,), [[0, 2]]), ((10,), [[0, 10]])]
    assert [key for key, _ in state.entries("Weights")] == [(1, 1), (1, 2), (1, 10), (11, 3)]


def test_defaults_are_fresh(chain: Ledger) -> None:
    """Changing what was read changes nothing stored."""
    state = State(chain.db, 1)
    state.get("LastUpdate", 1).append(7)
    assert state.get("LastUpdate", 1) == []
    assert state.get("Account", "anyone", pallet="System")["nonce"] == 0


@pytest.mark.parametrize(("item", "key"), [("NoSuchItem", (1,)), ("Tempo", ()), ("Tempo", (1, 2))])
def test_unknown_items_and_keys_raise(chain: Ledger, item: str, key: tuple[int, ...]) -> None:
    """Nothing is invented for an item that does not exist."""
    with pytest.raises(ChainError, match=item):
        State(chain.db, 1).get(item, *key)


def test_a_failed_transaction_leaves_nothing(chain: Ledger) -> None:
    """All or nothing."""

    def fail() -> None:
        with chain.transaction() as db:
            State(db, 1).put("Tempo", 1, value=10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert State(chain.db, 1).get("Tempo", 1) == 360


def test_nested_undo_keeps_the_rest(chain: Ledger) -> None:
    """A refused call inside a transaction takes only its own writes with it."""
    state = State(chain.db, 1)

    def fail() -> None:
        with state.all_or_nothing():
            state.put("Tempo", 1, value=99)
            raise RuntimeError

    with chain.transaction():
        state.put("Tempo", 1, value=10)
        with pytest.raises(RuntimeError):
            fail()
    assert state.get("Tempo", 1) == 10


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """SQLite alone does not make a chain."""
    path = tmp_path / "other.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(ChainUnavailable, match="not an embedded chain"):
        Ledger(path).open()


def test_closed_ledger_raises(chain: Ledger) -> None:
    """Use after close is an error."""
    chain.close()
    with pytest.raises(ChainUnavailable, match="not open"):
        chain.head()
