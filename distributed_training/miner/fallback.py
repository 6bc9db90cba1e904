"""Miners that hear of no validator end their epochs by themselves: at agreed blocks, in groups that find each other.

A group ends an epoch only if it holds the run's quorum of the miners seen at this state, and of those whose work is in
the state itself; so no two groups can, however the network is cut. Whatever fails is tried again at the next agreed
block, and as soon as a validator is heard of again, it leads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from distributed_training import schedule
from distributed_training.averaging.matchmaking import Matchmaker, Search
from distributed_training.events import FallbackTried
from distributed_training.gathering import Gathering, Volunteer
from distributed_training.node import ChainView, EndedRound, Node
from distributed_training.peers import validators_of
from distributed_training.protocol import AllReduce, AllReduceResponse
from distributed_training.run import RunSpec
from distributed_training.schedule import View
from template.chain.metagraph import Metagraph
from template.clock import Clock
from template.errors import AveragingError, Refused
from template.telemetry import Telemetry


@dataclass(frozen=True)
class Electorate:
    """The hotkeys that a group must hold the quorum of, each set by itself."""

    present: frozenset[str]
    before: frozenset[str]
    quorum: float

    @property
    def least(self) -> int:
        """The smallest group that can be large enough."""
        return max(schedule.quorum_of(len(of), self.quorum) for of in (self.present, self.before))

    def allows(self, hotkeys: Collection[str]) -> bool:
        """Whether this group may end the epoch."""
        return all(schedule.holds(hotkeys, of, self.quorum) for of in (self.present, self.before))


@dataclass
class _Try:
    """One attempt as it goes on, for its event."""

    state: tuple[int, str]
    block: int
    silent_blocks: int
    candidates: tuple[int, ...]
    needed: int
    started: float
    found: tuple[int, ...] = ()
    round_id: str = ""
    completed: bool = False


class Fallback:
    """The miner's side of rounds that no validator leads."""

    def __init__(
        self, *, spec: RunSpec, chain: ChainView, node: Node, matchmaker: Matchmaker, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._spec = spec
        self._chain = chain
        self._node = node
        self._matchmaker = matchmaker
        self._telemetry = telemetry
        self._clock = clock
        self._tried = -1  # the block at which the last attempt ended
        self._epoch_block: tuple[tuple[int, str], int] | None = None
        self._contributors: tuple[tuple[int, str], frozenset[str]] | None = None  # whose work is in a state
        self._failed: frozenset[str] = frozenset()  # by whom the last round failed

    @property
    def alone(self) -> bool:
        """Whether no validator was heard of for so long that none is alive."""
        return schedule.without_validators(self._node.silence.blocks, self._spec.epoch)

    def on_ended(self, done: EndedRound) -> None:
        """Called after each round: remember who made the state that we are at."""
        if done.completed:
            participants = set(done.result.outcome.participants)
            hotkeys = frozenset(m.peer.hotkey for m in done.request.group if m.uid in participants)
            self._contributors = ((done.state.epoch, done.state.hash), hotkeys)
            self._failed = frozenset()

    async def consider(self, metagraph: Metagraph, views: Sequence[View]) -> None:
        """Try to end the epoch, if an agreed block has come, no validator is among `views`, and enough was trained.

        `views`: everybody who answers, this miner included.
        """
        state, block = self._node.view().state, self._chain.block
        if self._epoch_block is None or self._epoch_block[0] != state:
            self._epoch_block = (state, block)
        due = schedule.fallback_due(block, self._node.silence.blocks, self._tried, self._spec.epoch)
        if not due or any(view.is_validator for view in views):
            return
        willing = [v for v in views if v.state == state and v.samples > 0 and v.peer.hotkey not in self._failed]
        have_work = any(view.uid == self._node.uid for view in willing)
        if have_work and schedule.ready(willing, state, block - self._epoch_block[1], self._spec.epoch):
            await self._try(metagraph, state, views, willing)
        self._tried = self._chain.block

    async def _try(
        self, metagraph: Metagraph, state: tuple[int, str], views: Sequence[View], willing: Sequence[View]
    ) -> None:
        electorate = self._electorate(metagraph, state, views)
        this = _Try(
            state,
            self._chain.block,
            self._node.silence.blocks,
            tuple(sorted(view.uid for view in willing)),
            electorate.least,
            self._clock.monotonic(),
        )
        try:
            ended = await self._average(metagraph, this, willing, electorate)
        except Refused as refusal:
            ended = f"{refusal.reason}: {refusal}"
        except AveragingError as error:
            self._failed = frozenset()  # perhaps it is us who were wrong about them
            ended = str(error)
        self._tell(this, ended)

    async def _average(self, metagraph: Metagraph, this: _Try, willing: Sequence[View], electorate: Electorate) -> str:
        """Find a group and run its round. Returns how it ended."""
        if not electorate.allows({view.peer.hotkey for view in willing}):
            raise AveragingError("too few miners to end an epoch without a validator")
        validators = validators_of(metagraph, self._spec.epoch.validator_stake)
        gathering = Gathering(self._spec, this.state, metagraph, validators, self._failed)
        found = await self._matchmaker.find(self._search(gathering, willing, electorate.least))
        request = gathering.request(found)
        this.found = tuple(member.uid for member in request.group)
        if not electorate.allows({member.peer.hotkey for member in request.group}):
            raise AveragingError("the group that was found is too small to end an epoch")
        if not self.alone:
            raise AveragingError("a validator is back: it leads")
        this.round_id = request.round_id
        answer = await self._node.take_part(request)
        this.completed = answer.completed
        if not answer.completed:
            self._failed = _blamed(request, answer)
        return "the epoch has ended" if answer.completed else "the round failed"

    def _search(self, gathering: Gathering, willing: Sequence[View], least: int) -> Search:
        (me,) = (view for view in willing if view.uid == self._node.uid)
        volunteer = Volunteer(peer=me.peer, epoch=me.epoch, state_hash=me.state_hash, samples=me.samples)
        others = {view.peer.peer_id: view.peer.addresses for view in willing if view is not me}
        return Search(
            key=gathering.key,
            blob=volunteer.blob(),
            candidates=others,
            least=least,
            most=max(least, len(others) + 1),
            admit=gathering.refusal,
        )

    def _electorate(self, metagraph: Metagraph, state: tuple[int, str], views: Sequence[View]) -> Electorate:
        """Where it is not known whose work is in the state, as after a restart: all miners that the chain has."""
        present = frozenset(view.peer.hotkey for view in views if view.state == state)
        if self._contributors is not None and self._contributors[0] == state:
            before = self._contributors[1]
        else:
            validators = validators_of(metagraph, self._spec.epoch.validator_stake)
            uids = (u for u, axon in enumerate(metagraph.axons) if axon is not None and u not in validators)
            before = frozenset(metagraph.hotkeys[uid] for uid in uids)
        return Electorate(present, before, self._spec.averaging.quorum)

    def _tell(self, this: _Try, ended: str) -> None:
        self._telemetry.emit(
            FallbackTried(
                uid=self._node.uid,
                epoch=this.state[0],
                block=this.block,
                silent_blocks=this.silent_blocks,
                candidates=list(this.candidates),
                needed=this.needed,
                found=list(this.found),
                round_id=this.round_id,
                completed=this.completed,
                ended=ended,
                seconds=self._clock.monotonic() - this.started,
            )
        )


def _blamed(request: AllReduce, answer: AllReduceResponse) -> frozenset[str]:
    failed = {failure.uid for failure in answer.failures}
    return frozenset(member.peer.hotkey for member in request.group if member.uid in failed)
