"""What a validator learns from the rounds it takes part in: how long states take, and how fast the members' lines are.

It uses it when it leads: for the deadlines and the shares. Nothing of it outlives the neuron; a restart begins with the
deadlines of the run spec and equal shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_training.averaging import deadlines, shares
from distributed_training.averaging.codec import pair_named
from distributed_training.averaging.outcome import RoundOutcome
from distributed_training.averaging.plan import CHUNK, StateDeadlines
from distributed_training.protocol import MAX_GROUP, AllReduce, AllReduceResponse, Member, StateSeconds, Transfer
from distributed_training.run import AveragingSpec

FAIR = 0.5  # of what we would have given ourselves: another leader has measured other rounds


class Experience:
    """Grows with each round; asked before each that this validator leads."""

    def __init__(self, spec: AveragingSpec) -> None:
        self._limits = deadlines.Limits(
            longest=StateDeadlines(
                connect=spec.connect_seconds, exchange=spec.exchange_seconds, commit=spec.commit_seconds
            ),
            least=spec.least_seconds,
            spread=spec.deadline_spread,
        )
        self._validator_share = spec.validator_share
        codecs = pair_named(spec.codec)
        self._sizes = (codecs.parts.encoded_size(CHUNK) / CHUNK, codecs.average.encoded_size(CHUNK) / CHUNK)
        self._times = deadlines.Times()
        self._rates: Mapping[str, shares.Rate] = {}

    def deadlines(self) -> StateDeadlines:
        """What the next round should be given."""
        return deadlines.adapted(self._times, self._limits)

    def fair_exchange_seconds(self) -> float:
        """The shortest EXCHANGE that another leader may give for its end to count against those who were late."""
        return max(self._limits.least, FAIR * self.deadlines().exchange)

    def shared(self, members: Sequence[Member]) -> tuple[Member, ...]:
        """The members with the shares that suit their lines; who has none now gets none."""
        reducing = {member.uid for member in members if member.share > 0}
        return shares.shared(members, reducing, self._rates, self._validator_share, self._sizes)

    def led(self, request: AllReduce, uid: int, answers: Mapping[int, AllReduceResponse], *, absent: bool) -> None:
        """Learn from a round that we led as `uid`. `absent`: it could not succeed, as somebody never got the request.

        Others went on connecting until their deadline then, which says nothing of the deadline.
        """
        own = answers.get(uid)
        if own is None:
            return
        said = [deadlines.passed(a.states, completed=a.completed) for u, a in answers.items() if u != uid]
        self._note_times(request, own.states, said, completed=own.completed, ignored=("connect",) if absent else ())
        if own.completed:
            self._note_rates(request, {u: answer.transfers for u, answer in answers.items()})

    def seen(self, request: AllReduce, uid: int, outcome: RoundOutcome) -> None:
        """Learn from a round that another led, what we measured in it as `uid`.

        Who else was asked we do not know, so that nobody came in time may have any reason.
        """
        states = deadlines.states_of(outcome)
        self._note_times(request, states, (), completed=outcome.completed, ignored=("connect",))
        if outcome.completed:
            self._note_rates(request, {uid: outcome.transfers})

    def _note_times(
        self,
        request: AllReduce,
        own: StateSeconds,
        said: Sequence[Mapping[str, float]],
        *,
        completed: bool,
        ignored: Sequence[str],
    ) -> None:
        given = StateDeadlines(**request.deadlines.model_dump())
        samples = deadlines.agreed(deadlines.passed(own, completed=completed), said)
        missed = None if completed else deadlines.missed(own, given)
        if missed is not None and missed not in ignored:
            samples[missed] = deadlines.Sample(getattr(given, missed), missed=True)
        self._times = self._times.after(samples)

    def _note_rates(self, request: AllReduce, reports: Mapping[int, Sequence[Transfer]]) -> None:
        hotkeys = {member.uid: member.peer.hotkey for member in request.group}
        seen = {hotkeys[uid]: rate for uid, rate in shares.reported(reports).items() if uid in hotkeys}
        group = set(hotkeys.values())
        others = [(hotkey, rate) for hotkey, rate in self._rates.items() if hotkey not in group][-MAX_GROUP:]
        known = {hotkey: rate for hotkey, rate in self._rates.items() if hotkey in group}
        self._rates = dict(others) | shares.smoothed(known, seen)
