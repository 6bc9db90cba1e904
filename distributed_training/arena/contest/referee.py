"""One round from sealed commitments to a result: opens the reveals, has the trials run, judges, and writes it down.

Knows no chain. What a stranger's source does wrong is its own result; what this machine cannot do (no sandbox, no text,
a full disk) is an error of everybody's round, and the round is taken up again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.arena.contest.bench import Bench
from distributed_training.arena.contest.fingerprint import Fingerprint, fingerprint, reference_fingerprints
from distributed_training.arena.contest.judgement import (
    SOUND,
    Entry,
    Judgement,
    Known,
    Standing,
    Status,
    Throne,
    Trials,
    duplicate_of,
    gate,
    judge,
)
from distributed_training.arena.contest.places import Place
from distributed_training.arena.contest.spec import ContestSpec, Round, seeds_of
from distributed_training.arena.contest.state import ContestState, Holder
from distributed_training.arena.contest.submission import committed_round, largest_reveal, opened, source_id
from template.chain.commitments import Commitment
from template.errors import RecordMismatch, StrategyError, SubmissionError, SubmissionRefused
from template.files import replace_file

VERSION = 1
LATE = "late"  # the sandbox's word
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """Who committed something to this round: its source, or why there is none."""

    hotkey: str
    block: int
    source: bytes = b""
    problem: str | None = None


@dataclass(frozen=True)
class Decision:
    """What came of a round: the judgement, and what the next one begins with."""

    judgement: Judgement
    champion: Holder | None
    earlier: tuple[Holder, ...]


def taking_part(committed: Mapping[str, Commitment], number: Round) -> dict[str, Commitment]:
    """Those commitments that are for this round, and were made while it was open."""
    return {
        hotkey: found
        for hotkey, found in committed.items()
        if committed_round(found.data) == number.number and number.opens <= found.block < number.closes
    }


def collect(
    committed: Mapping[str, Commitment], number: int, spec: ContestSpec, netuid: int, place: Place
) -> list[Candidate]:
    """What was revealed, in the order of the commitments.

    Raises:
        HubUnavailable: the place does not answer: nobody's submission may be lost by that.
    """
    order = sorted(committed, key=lambda hotkey: (committed[hotkey].block, hotkey))
    expected = (spec.contest_id, netuid, number)
    return [_candidate(hotkey, committed[hotkey], expected, place, spec.reveals.largest) for hotkey in order]


def _candidate(
    hotkey: str, commitment: Commitment, expected: tuple[str, int, int], place: Place, largest: int
) -> Candidate:
    number = expected[2]
    try:
        text = place.get(number, hotkey, largest_reveal(largest))
        if text is None:
            raise SubmissionRefused("nothing was revealed", reason="not_revealed")
        submission = opened(text, commitment.data, largest)
        found = (submission.contest_id, submission.netuid, submission.round)
        if submission.hotkey != hotkey or found != expected:
            raise SubmissionRefused("another hotkey's, contest's or round's submission", reason="not_committed")
    except SubmissionRefused as error:
        return Candidate(hotkey, commitment.block, problem=f"{error.reason}: {error}")
    return Candidate(hotkey, commitment.block, submission.source)


class Referee:
    """Decides rounds of one contest. `folder` gets sources/SHA256.py; records lie where the bench puts them."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._rules, self._budget = bench.spec.rules, bench.spec.trial.budget
        self._folder = folder

    def decide(
        self, state: ContestState, seeds: Sequence[int], candidates: Sequence[Candidate], recheck: bool = True
    ) -> Decision:
        """Run what is to be run, and judge. May take long. `recheck`: run a new champion once more, to see that its
        record can be verified.

        Raises:
            SubnetError: this machine cannot; what was run already stays on disk.
        """
        if all(candidate.problem is not None for candidate in candidates):
            return self._unchallenged(state, candidates)
        references = {name: self._reference(name, seeds) for name in self._bench.spec.references}
        champion = self._champion(state.champion, seeds)
        known = [*self._references(references), *map(self._earlier, state.earlier)]
        if champion is not None:
            known.append(self._known_champion(champion))
        entries = [self._entry(c, i, seeds, references, known) for i, c in enumerate(candidates)]
        while True:
            result = judge(entries, champion, references, known, self._rules, self._budget)
            wrong = self._not_reproducible(result, champion, entries, seeds) if recheck else None
            if wrong is None:
                break
            entries = [wrong if entry.hotkey == wrong.hotkey else entry for entry in entries]
        return Decision(result, _holder(result.throne), self._grown(state.earlier, result))

    def _unchallenged(self, state: ContestState, candidates: Sequence[Candidate]) -> Decision:
        """Nothing to run: who is champion stays so."""
        holder = state.champion
        throne = Throne(name="-", trials={})
        if holder is not None:
            throne = Throne(name=holder.hotkey, trials={}, hotkey=holder.hotkey, source=holder.source)
        refused = (
            Standing(hotkey=c.hotkey, source="", status=Status.REFUSED, reason=c.problem or "") for c in candidates
        )
        return Decision(Judgement(throne, tuple(refused)), holder, state.earlier)

    def _reference(self, name: str, seeds: Sequence[int]) -> Trials:
        return {seed: self._bench.reference(name, seed) for seed in seeds}

    def _champion(self, holder: Holder | None, seeds: Sequence[int]) -> Throne | None:
        """The champion on the new seeds; one that breaks off on them has lost its throne, one that was only late not:
        that may be this machine's fault.

        Raises:
            SubmissionError: it was late.
        """
        if holder is None:
            return None
        source = self._source(holder.source)
        try:
            trials = {seed: self._bench.submission(holder.hotkey, source, seed) for seed in seeds}
        except StrategyError as error:
            if isinstance(error, SubmissionError) and error.reason == LATE:
                raise
            log.warning("the champion %s broke off and has lost its throne: %s", holder.hotkey, error)
            return None
        return Throne(name=holder.hotkey, trials=trials, hotkey=holder.hotkey, source=holder.source)

    def _references(self, trials: Mapping[str, Trials]) -> list[Known]:
        found = reference_fingerprints()
        return [Known(name, found[name], trials.get(name, {})) for name in found]

    def _earlier(self, holder: Holder) -> Known:
        return Known(holder.hotkey, self._fingerprint(holder.source), hotkey=holder.hotkey)

    def _known_champion(self, champion: Throne) -> Known:
        assert champion.source is not None
        return Known(champion.name, self._fingerprint(champion.source), champion.trials, champion.hotkey)

    def _entry(
        self,
        candidate: Candidate,
        place: int,
        seeds: Sequence[int],
        references: Mapping[str, Trials],
        known: Sequence[Known],
    ) -> Entry:
        order, problem = (candidate.block, candidate.hotkey), candidate.problem
        if problem is None and place >= self._rules.entries:
            problem = f"full: {self._rules.entries} submissions were committed before it"
        if problem is not None:
            return Entry(candidate.hotkey, order, "", Fingerprint(), {}, (Status.REFUSED, problem))
        source = source_id(candidate.source)
        replace_file(self._source_path(source), candidate.source)
        bare = Entry(candidate.hotkey, order, source, fingerprint(candidate.source.decode()), {})
        copied = duplicate_of(bare, known, self._rules.similarity)
        if copied is not None:
            return dataclasses.replace(bare, problem=(Status.DUPLICATE, copied))
        return self._tried(bare, candidate.source, seeds, references)

    def _tried(self, entry: Entry, source: bytes, seeds: Sequence[int], references: Mapping[str, Trials]) -> Entry:
        """With its trials. What does not pass the gate with the first seed is not run with the others."""
        trials: dict[int, Any] = {}
        try:
            for seed in seeds:
                trials[seed] = self._bench.entry(entry.hotkey, source, seed)
                problem = gate(trials, references, self._rules.quality) if len(trials) == 1 else None
                if problem is not None:
                    return dataclasses.replace(entry, problem=problem)
        except StrategyError as error:
            return dataclasses.replace(entry, problem=(Status.FAILED, str(error)))
        return dataclasses.replace(entry, trials=trials)

    def _not_reproducible(
        self, result: Judgement, before: Throne | None, entries: Sequence[Entry], seeds: Sequence[int]
    ) -> Entry | None:
        """The new champion, if running it again gives something else: its entry with that as its problem."""
        throne = result.throne
        if throne.source is None or throne == before:
            return None
        seed, source = seeds[0], self._source(throne.source)
        if self._bench.again(source, seed) == throne.trials[seed].params_sha256:
            return None
        entry = next(entry for entry in entries if entry.hotkey == throne.hotkey)
        reason = f"with seed {seed} it ended elsewhere when it was run again: nobody could verify its record"
        self._bench.condemn(source, seed, reason)
        return dataclasses.replace(entry, trials={}, problem=(Status.FAILED, reason))

    def _grown(self, earlier: tuple[Holder, ...], result: Judgement) -> tuple[Holder, ...]:
        new = (Holder(s.hotkey, s.source) for s in result.standings if s.status in SOUND)
        return tuple(dict.fromkeys((*earlier, *new)))

    def _fingerprint(self, source: str) -> Fingerprint:
        return fingerprint(self._source(source).decode())

    def _source(self, name: str) -> bytes:
        path = self._source_path(name)
        try:
            found = path.read_bytes()
        except OSError as error:
            raise RecordMismatch(f"the source {path} is gone: {error}; copy it from another validator") from error
        if source_id(found) != name:
            raise RecordMismatch(f"{path} is not the source that its name says")
        return found

    def _source_path(self, name: str) -> Path:
        return self._folder / "sources" / f"{name}.py"


def result_of(
    spec: ContestSpec,
    number: Round,
    block_hash: str,
    state: ContestState,
    candidates: Sequence[Candidate],
    found: Decision,
) -> dict[str, Any]:
    """What a round came to, as plain values: all that the judgement follows from, but the records and sources."""
    throne = found.judgement.throne
    return {
        "version": VERSION,
        "contest": spec.contest_id,
        "spec": dataclasses.asdict(spec),
        "round": dataclasses.asdict(number),
        "block_hash": block_hash,
        "seeds": list(seeds_of(spec.contest_id, number.number, block_hash, spec.rules.replicates)),
        "before": {
            "champion": None if state.champion is None else vars(state.champion),
            "earlier": [vars(holder) for holder in state.earlier],
        },
        "candidates": [
            {
                "hotkey": c.hotkey,
                "block": c.block,
                "source": source_id(c.source) if c.problem is None else None,
                "problem": c.problem,
            }
            for c in candidates
        ],
        "throne": {"name": throne.name, "hotkey": throne.hotkey, "source": throne.source},
        "standings": [dataclasses.asdict(standing) for standing in found.judgement.standings],
    }


def _holder(throne: Throne) -> Holder | None:
    return None if throne.hotkey is None or throne.source is None else Holder(throne.hotkey, throne.source)
