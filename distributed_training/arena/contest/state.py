"""What a validator of the contest must not forget over a restart, in one versioned JSON file that is replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from template.chain.commitments import Commitment
from template.errors import CorruptState
from template.files import replace_json

VERSION = 1


@dataclass(frozen=True)
class Holder:
    """A hotkey and the sha256 of the source with which it got where it is."""

    hotkey: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ContestState:
    """`round`: the next one to be judged; `committed`: what counts in it, once its commitments are closed, by hotkey;
    `earlier`: submissions that nobody may copy, oldest first; `weights_block`: when weights were last set or refused.
    """

    contest_id: str
    round: int
    champion: Holder | None = None
    earlier: tuple[Holder, ...] = ()
    committed: Mapping[str, Commitment] | None = None
    weights_block: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        committed = self.committed
        return {
            "version": VERSION,
            "contest_id": self.contest_id,
            "round": self.round,
            "champion": None if self.champion is None else vars(self.champion),
            "earlier": [vars(holder) for holder in self.earlier],
            "committed": None if committed is None else {h: [c.block, c.data.hex()] for h, c in committed.items()},
            "weights_block": self.weights_block,
        }

    @staticmethod
    def load_state_dict(state: Mapping[str, Any]) -> ContestState:
        """The state that `state_dict` gave.

        Raises:
            CorruptState: it is not one.
        """
        try:
            if state["version"] != VERSION:
                raise ValueError(f"version {state['version']!r}")
            committed, champion, block = state["committed"], state["champion"], state["weights_block"]
            return ContestState(
                contest_id=str(state["contest_id"]),
                round=int(state["round"]),
                champion=None if champion is None else Holder(**champion),
                earlier=tuple(Holder(**holder) for holder in state["earlier"]),
                committed=None
                if committed is None
                else {str(h): Commitment(int(b), bytes.fromhex(d)) for h, (b, d) in committed.items()},
                weights_block=None if block is None else int(block),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptState(f"not the state of a contest: {error!r}") from error


@dataclass
class StateFile:
    """The state as it is now, and its file."""

    path: Path
    now: ContestState = field(init=False)

    def open(self, contest_id: str, first_round: int) -> None:
        """Read the file; begin with `first_round` if there is none.

        Raises:
            CorruptState: it is damaged, cannot be read, or is of another contest; the message names it.
        """
        try:
            self.now = ContestState.load_state_dict(json.loads(self.path.read_text()))
        except FileNotFoundError:
            self.now = ContestState(contest_id=contest_id, round=first_round)
            return
        except (OSError, ValueError, RecursionError, CorruptState) as error:
            raise CorruptState(f"{self.path} is damaged ({error}); move it away to start without a champion") from error
        if self.now.contest_id != contest_id:
            raise CorruptState(
                f"{self.path} is of contest {self.now.contest_id}, this is {contest_id}; give another --state"
            )

    def save(self, state: ContestState) -> None:
        """Go on with `state`, on disk first. Raises OSError; the state is the old one then."""
        replace_json(self.path, state.state_dict())
        self.now = state
