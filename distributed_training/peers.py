"""Asking other neurons where they stand, and keeping only answers whose peer id their hotkey has signed for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from distributed_training.averaging.binding import binding_is_valid
from distributed_training.averaging.introduction import introduced
from distributed_training.averaging.streams import Transport
from distributed_training.events import Unseen
from distributed_training.protocol import IsAlive, IsAliveResponse, PeerBinding
from distributed_training.schedule import View
from template.chain.metagraph import Metagraph
from template.errors import AveragingError
from template.telemetry import Telemetry
from template.transport.dendrite import Dendrite, Target


def validators_of(metagraph: Metagraph, stake_floor: float) -> frozenset[int]:
    """The uids that may lead and ask: permit, stake, and an axon, without which nobody can take part in a round."""
    uids = range(len(metagraph))
    return frozenset(u for u in uids if metagraph.is_validator(u, stake_floor) and metagraph.axons[u] is not None)


def targets(metagraph: Metagraph, uids: Iterable[int]) -> tuple[Target, ...]:
    """The neurons among `uids` that serve an axon."""
    return tuple(
        Target(uid=uid, hotkey=metagraph.hotkeys[uid], host=axon.ip, port=axon.port)
        for uid in uids
        if (axon := metagraph.axons[uid]) is not None
    )


class KnownPeers:
    """The peer ids that a registered hotkey has signed for: nobody else's streams are served. One a hotkey."""

    def __init__(self) -> None:
        self._by_hotkey: dict[str, str] = {}

    def add(self, hotkey: str, peer_id: str) -> None:
        self._by_hotkey[hotkey] = peer_id

    def keep(self, hotkeys: Iterable[str]) -> None:
        """Forget all hotkeys but these."""
        kept = self._by_hotkey.keys() & set(hotkeys)
        self._by_hotkey = {hotkey: self._by_hotkey[hotkey] for hotkey in kept}

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._by_hotkey.values()


class Census:
    """Asks a set of neurons where they stand. `corpus` is the fingerprint that their data must have.

    `binding` is this neuron's own, `transport` what it reaches other peers by.
    """

    def __init__(
        self,
        *,
        uid: int,
        run_id: str,
        corpus: str,
        stake_floor: float,
        binding: PeerBinding,
        transport: Transport,
        dendrite: Dendrite,
        known: KnownPeers,
        telemetry: Telemetry,
    ) -> None:
        self._uid = uid
        self._run_id = run_id
        self._corpus = corpus
        self._stake_floor = stake_floor
        self._binding = binding
        self._transport = transport
        self._dendrite = dendrite
        self._known = known
        self._telemetry = telemetry
        self._silent: dict[int, str] = {}
        self._owners: dict[str, str] = {}  # hotkey by peer id, of those that several hotkeys claim

    async def ask(self, metagraph: Metagraph, uids: Iterable[int], deadline: float) -> tuple[View, ...]:
        """One `IsAlive` to each; who does not answer, or not truthfully, is told once in telemetry and left out."""
        others = targets(metagraph, (uid for uid in uids if uid != self._uid))
        outcomes = await self._dendrite.broadcast(others, IsAlive(run_id=self._run_id), deadline)
        validators = validators_of(metagraph, self._stake_floor)
        self._known.keep(metagraph.hotkeys)
        views = []
        for uid, outcome in outcomes.items():
            problem = str(outcome.error) if outcome.error else None
            answer = outcome.response
            if isinstance(answer, IsAliveResponse):
                problem = self._problem(metagraph, uid, answer)
                if problem is None:
                    views.append(_view(uid, uid in validators, answer))
                    continue
            self._tell(uid, problem)
        return await self._without_impostors(views)

    async def _without_impostors(self, views: Sequence[View]) -> tuple[View, ...]:
        """The views whose peer id no other hotkey claims, or is really theirs."""
        claims: dict[str, list[View]] = defaultdict(list)
        for view in views:
            claims[view.peer.peer_id].append(view)
        ours = self._binding.peer_id
        disputed = [peer_id for peer_id, claimants in claims.items() if len(claimants) > 1 and peer_id != ours]
        asked = await asyncio.gather(*(self._owner(peer_id, claims[peer_id]) for peer_id in disputed))
        self._owners = {peer_id: owner for peer_id, owner in zip(disputed, asked, strict=True) if owner is not None}
        theirs = dict(zip(disputed, asked, strict=True)) | {ours: self._binding.hotkey}
        return tuple(view for view in views if self._is_theirs(view, theirs))

    def _is_theirs(self, view: View, owners: Mapping[str, str | None]) -> bool:
        hotkey, peer_id = view.peer.hotkey, view.peer.peer_id
        if owners.get(peer_id, hotkey) != hotkey:
            self._tell(view.uid, "its peer id is claimed by several hotkeys, and not known to be its own")
            return False
        self._tell(view.uid, None)
        self._known.add(hotkey, peer_id)
        return True

    async def _owner(self, peer_id: str, claimants: Sequence[View]) -> str | None:
        """The hotkey that the peer itself names; None if it cannot be asked at any of the claimed addresses."""
        if peer_id in self._owners:
            return self._owners[peer_id]
        ways = {view.peer.addresses for view in claimants}
        answers = await asyncio.gather(
            *(introduced(self._transport, peer_id, way) for way in ways), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, PeerBinding) and self._names(answer, peer_id):
                return answer.hotkey
            if isinstance(answer, BaseException) and not isinstance(answer, AveragingError):
                raise answer
        return None

    def _names(self, binding: PeerBinding, peer_id: str) -> bool:
        return binding.peer_id == peer_id and binding_is_valid(binding, self._run_id, binding.hotkey)

    def _problem(self, metagraph: Metagraph, uid: int, answer: IsAliveResponse) -> str | None:
        if not binding_is_valid(answer.peer, self._run_id, metagraph.hotkeys[uid]):
            return "its peer id is not bound to its hotkey"
        if answer.corpus != self._corpus:
            return f"its corpus is {answer.corpus[:12]}, ours {self._corpus[:12]}: both need the same text"
        return None

    def _tell(self, uid: int, problem: str | None) -> None:
        if problem is None:
            self._silent.pop(uid, None)
        elif self._silent.get(uid) != problem:
            self._silent[uid] = problem
            self._telemetry.emit(Unseen(uid=self._uid, miner=uid, synapse="IsAlive", reason=problem))


def _view(uid: int, is_validator: bool, answer: IsAliveResponse) -> View:
    return View(
        uid=uid,
        is_validator=is_validator,
        epoch=answer.epoch,
        state_hash=answer.state_hash,
        samples=answer.samples,
        peer=answer.peer,
        settled=answer.settled,
    )
