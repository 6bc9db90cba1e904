"""Trials of entries and references, each run once: what is on disk as a record is not run again.

    records/SUBJECT-SEED.json     SUBJECT is the name of a reference, or the sha256 of a source
    records/SUBJECT-SEED.failed   why a source has no such record, or why it does not count

A restart in the middle of a round goes on with the trial that it was at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_training.arena.contest.spec import ContestSpec, TrialSpec
from distributed_training.arena.contest.submission import source_id
from distributed_training.arena.corpus import PAGE, Corpus, read_corpus
from distributed_training.arena.record import Subject, record
from distributed_training.arena.simulator import Outcome, Plan, simulate
from distributed_training.arena.trial import Trial, read_record, trial_of
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.catalogue import build, entry_named
from template.errors import ConfigurationError, RecordMismatch, StrategyError
from template.files import replace_file, replace_json

CPU = torch.device("cpu")  # the same bits for every validator
FAILED = ".failed"

Runner = Callable[[bytes, OptimizerSpec, Plan, Corpus], Outcome]
"""Runs a stranger's source; StrategyError says that the source is to blame, any other SubnetError that it is not."""


@dataclass(frozen=True)
class Bench:
    """Where trials are run: what is the same for all of them, and the folder of their records."""

    spec: ContestSpec
    corpus: Corpus
    folder: Path
    runner: Runner
    may_run: bool = True  # False: only what is on disk counts

    def reference(self, name: str, seed: int) -> Trial:
        """A built-in strategy's trial; ConfigurationError or StrategyError if it cannot be run."""
        optimizer = reference_optimizer(self.spec, name)
        strategy = build(name, optimizer, {})
        hyperparameters = {key: getattr(strategy, key) for key in entry_named(name).hyperparameters()}
        subject = dataclasses.replace(self._subject(name), hyperparameters=hyperparameters, optimizer=optimizer)
        return self._trial(name, subject, seed, lambda plan: simulate(strategy, plan, self.corpus, CPU))

    def submission(self, hotkey: str, source: bytes, seed: int) -> Trial:
        """A submission's trial; raises what the runner does."""
        name = source_id(source)
        subject = dataclasses.replace(self._subject(hotkey), submission=name)
        return self._trial(name, subject, seed, lambda plan: self.runner(source, self._given, plan, self.corpus))

    def entry(self, hotkey: str, source: bytes, seed: int) -> Trial:
        """The same, of a source that is blamed for its failure: it is written down, and not tried a second time."""
        path = self.path(source_id(source), seed).with_suffix(FAILED)
        if path.exists():
            raise StrategyError(path.read_text())
        try:
            return self.submission(hotkey, source, seed)
        except StrategyError as error:
            self.condemn(source, seed, str(error))
            raise

    def condemn(self, source: bytes, seed: int, reason: str) -> None:
        """Write down why a trial does not count."""
        replace_file(self.path(source_id(source), seed).with_suffix(FAILED), reason.encode())

    def again(self, source: bytes, seed: int) -> str:
        """The parameter hash of a submission's trial that is run once more, whatever is on disk."""
        plan = self.spec.trial.plan(seed)
        outcome = self.runner(source, self._given, plan, self.corpus)
        return str(record(self._subject(""), plan, self.corpus, outcome, CPU)["params_sha256"])

    @property
    def _given(self) -> OptimizerSpec:
        """The inner optimiser that the contest offers to everybody; a submission may take another."""
        return self.spec.optimizer.spec(self.spec.trial.steps)

    def path(self, name: str, seed: int) -> Path:
        """Of a record."""
        return self.folder / f"{name}-{seed}.json"

    def _subject(self, name: str) -> Subject:
        trial = self.spec.trial
        return Subject(
            strategy=name,
            hyperparameters={},
            optimizer=self._given,
            model=trial.model,
            tokenizer=trial.tokenizer,
            flops=trial.flops,
            links=trial.links,
        )

    def _trial(self, name: str, subject: Subject, seed: int, run: Callable[[Plan], Outcome]) -> Trial:
        path, plan = self.path(name, seed), self.spec.trial.plan(seed)
        if path.exists():
            return self._found(path, subject, plan)
        if not self.may_run:
            raise RecordMismatch(f"there is no record {path}")
        found = record(subject, plan, self.corpus, run(plan), CPU)
        replace_json(path, found)
        return trial_of(found)

    def _found(self, path: Path, subject: Subject, plan: Plan) -> Trial:
        found = read_record(path)
        wanted: dict[str, Any] = {"plan": dataclasses.asdict(plan), "corpus": self.corpus.fingerprint}
        same = all(found[key] == value for key, value in wanted.items())
        if not same or found["subject"]["submission"] != subject.submission:
            raise RecordMismatch(f"{path} is of another contest; move it away to run the trial again")
        return trial_of(found)


def open_bench(spec: ContestSpec, folder: Path, runner: Runner) -> Bench:
    """Where trials of a contest are run; raises as `require_corpus`."""
    return Bench(spec, require_corpus(spec.trial), folder, runner)


def require_corpus(trial: TrialSpec) -> Corpus:
    """The contest's text.

    Raises:
        ConfigurationError: it is another one, or cannot be read.
        CorpusTooSmall: there is too little of it.
    """
    corpus = read_corpus(Path(trial.text).expanduser(), trial.tokenizer, trial.plan(0).size, PAGE)
    if trial.corpus and corpus.fingerprint != trial.corpus:
        raise ConfigurationError(
            f"the text in {trial.text} has the fingerprint {corpus.fingerprint}, the contest's is {trial.corpus}: it "
            "must be a copy of the contest's text"
        )
    return corpus


def reference_optimizer(spec: ContestSpec, name: str) -> OptimizerSpec:
    """The inner optimiser of a reference: the contest's, with the reference's learning rate."""
    return dataclasses.replace(spec.optimizer, learning_rate=spec.references[name]).spec(spec.trial.steps)
