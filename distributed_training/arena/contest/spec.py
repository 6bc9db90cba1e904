"""The contest spec: the TOML file that all validators of mechanism 1 share, and the calendar of its rounds.

Like a run spec it is refused whole if a key is unknown, missing or impossible. `contest_id` is the name and a short
hash of all of it: records, commitments and the state of a validator carry it. Load with
`load_contest("runs/contests/nano.toml")`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from distributed_training.arena.links import Link
from distributed_training.arena.optimizer import InnerConfig
from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.simulator import Plan
from distributed_training.arena.sizes import size_named
from distributed_training.run import from_table
from distributed_training.strategies.catalogue import entry_named
from template.errors import ConfigurationError

MEGABIT = 1e6
FEWEST_REPLICATES = 3


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


@dataclass(frozen=True, kw_only=True)
class CalendarSpec:
    """When rounds are, in blocks. Round r opens at start + r * length; what is committed in the first `commit` blocks
    counts; sources must be revealed within `reveal` blocks after that; the seeds follow from the hash of the block that
    comes `seed_delay` blocks after the last one in which could be committed."""

    start: int
    length: int
    commit: int
    reveal: int
    seed_delay: int

    def __post_init__(self) -> None:
        _require(self.start >= 0, "calendar.start must not be negative")
        for name in ("commit", "reveal", "seed_delay"):
            _require(getattr(self, name) >= 1, f"calendar.{name} must be at least 1 block")
        _require(self.seed_delay <= self.reveal, "calendar.seed_delay must not exceed calendar.reveal")
        _require(
            self.commit + self.reveal <= self.length,
            "calendar.length must have room for commit and reveal: the next round opens when the sources are there",
        )


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What one trial of an entry is. `text` is a folder of text files, a relative one counts from the working directory
    (the standard library's sources will not do: a submission could read them in its sandbox); `corpus` pins the
    fingerprint of what is read: without it validators with different texts judge differently, and none can run
    another's records again. `flops` a second that a node is declared to compute, `bandwidths` in Mbit/s each way,
    `latency` in seconds of one exchange; `budget` is the simulated time, in seconds, within which the loss that counts
    is reached."""

    model: str
    tokenizer: str
    nodes: int
    samples: int
    steps: int
    evaluate_every: int
    evaluation_samples: int
    text: str
    corpus: str = ""
    flops: float
    bandwidths: tuple[float, ...]
    latency: float
    budget: float

    def __post_init__(self) -> None:
        _require(self.nodes >= 2, "trial.nodes must be at least 2: who is alone has nobody to communicate with")
        _require(bool(self.text), "trial.text must name a folder of text files, which all validators have a copy of")
        _require(self.flops > 0, "trial.flops must be positive")
        _require(self.budget > 0, "trial.budget must be positive")
        _require(bool(self.bandwidths), "trial.bandwidths must name at least one link")
        self.plan(0)

    def plan(self, seed: int) -> Plan:
        """What is simulated with this seed."""
        return Plan(
            size=dataclasses.replace(size_named(self.model), samples=self.samples),
            nodes=self.nodes,
            steps=self.steps,
            seed=seed,
            evaluate_every=self.evaluate_every,
            evaluation_samples=self.evaluation_samples,
        )

    @functools.cached_property
    def links(self) -> Mapping[str, Link]:
        """By name."""
        return links_of(self.bandwidths, self.latency)


@dataclass(frozen=True, kw_only=True)
class RuleSpec:
    """How it is decided. Each entry and the champion train `replicates` times, on the same seeds. The champion falls if
    the interval of `confidence` of the relative gain lies above 0 and the mean gain is more than `epsilon`. `quality`
    is the share of the loss that DDP gains over the initial model that an entry must gain, too, within the same steps.
    `similarity` from 0 to 1: sources that have so much of their code in common are one (fingerprint.py). Of more than
    `entries` of a round those that were committed first take part."""

    entries: int
    replicates: int
    confidence: float
    epsilon: float
    quality: float
    similarity: float

    def __post_init__(self) -> None:
        _require(
            self.replicates >= FEWEST_REPLICATES,
            f"rules.replicates must be at least {FEWEST_REPLICATES}: an interval needs them; found {self.replicates}",
        )
        _require(self.entries >= 1, "rules.entries must be at least 1")
        for name in ("confidence", "quality", "similarity"):
            _require(0 < getattr(self, name) < 1, f"rules.{name} must lie in (0, 1); found {getattr(self, name)}")
        _require(self.epsilon >= 0, "rules.epsilon must not be negative")


@dataclass(frozen=True, kw_only=True)
class RevealSpec:
    """Where sources are revealed: a folder, or an http(s) address that takes PUT and gives GET; `largest` bytes of a
    source."""

    place: str
    largest: int

    def __post_init__(self) -> None:
        _require(bool(self.place), "reveals.place must be a folder or an http(s) address")
        _require(self.largest >= 1, "reveals.largest must be at least 1 byte")


@dataclass(frozen=True, kw_only=True)
class PaymentSpec:
    """Weights of mechanism 1 are set every `interval` blocks, with `version_key`."""

    interval: int
    version_key: int = 0

    def __post_init__(self) -> None:
        _require(self.interval >= 1, "weights.interval must be at least 1 block")
        _require(self.version_key >= 0, "weights.version_key must not be negative")


@dataclass(frozen=True, kw_only=True)
class ContestSpec:
    """All of it. `references`: learning rate by the name of a built-in strategy (catalogue.py); an entry is measured
    against these, and until one of them is beaten nobody is champion. `ddp` must be among them, for the quality gate,
    and `apart`, which shows what communicating is worth; `apart` is no candidate for the throne. `limits` are those of
    the sandbox."""

    name: str
    calendar: CalendarSpec
    trial: TrialSpec
    optimizer: InnerConfig
    references: Mapping[str, float]
    rules: RuleSpec
    reveals: RevealSpec
    weights: PaymentSpec
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        ok = self.name and all(c.isascii() and (c.isdigit() or c.islower() or c == "-") for c in self.name)
        _require(bool(ok) and len(self.name) <= 64, "name must be 1-64 of a-z, 0-9 and '-'")
        for name, rate in self.references.items():
            entry_named(name)
            _require(type(rate) is float and rate > 0, f"references.{name} must be a learning rate, such as 0.004")
        most = self.limits.source
        _require(self.reveals.largest <= most, f"reveals.largest must not exceed limits.source, {most}")
        _require({DDP, APART} <= set(self.references), f"references must have {DDP} and {APART}")

    @functools.cached_property
    def contest_id(self) -> str:
        """Name and the first 12 hex digits of sha256 over the canonical JSON of the spec."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


DDP, APART = "ddp", "apart"


def links_of(bandwidths: tuple[float, ...], latency: float) -> dict[str, Link]:
    """Links by name; bandwidths in Mbit/s, latency in seconds."""
    return {f"{m:g} Mbit/s": Link(bandwidth=m * MEGABIT, latency=latency) for m in bandwidths}


def load_contest(path: Path) -> ContestSpec:
    """Read a contest spec.

    Raises:
        ConfigurationError: no such file, not TOML, an unknown or missing key, a wrong type or an impossible value.
    """
    try:
        table = tomllib.loads(path.read_text())
        return from_table(ContestSpec, table)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"no contest can be read from {path}: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


class Phase(Enum):
    """Of a round."""

    COMMIT = "commit"
    REVEAL = "reveal"
    DECIDE = "decide"


@dataclass(frozen=True)
class Round:
    """Number and blocks of a round: committed is in opens <= block < closes, revealed before `revealed`; seeds come
    from the hash of `seed_block`; the next one opens at `ends`."""

    number: int
    opens: int
    closes: int
    seed_block: int
    revealed: int
    ends: int

    def phase(self, block: int) -> Phase:
        """Of the round at `block`, which lies in it or after it."""
        if block < self.closes:
            return Phase.COMMIT
        return Phase.REVEAL if block < self.revealed else Phase.DECIDE


def round_numbered(calendar: CalendarSpec, number: int) -> Round:
    """The blocks of round `number`."""
    opens = calendar.start + number * calendar.length
    closes = opens + calendar.commit
    return Round(
        number=number,
        opens=opens,
        closes=closes,
        seed_block=closes - 1 + calendar.seed_delay,
        revealed=closes + calendar.reveal,
        ends=opens + calendar.length,
    )


def round_at(calendar: CalendarSpec, block: int) -> Round | None:
    """The round that `block` lies in; None before the first."""
    if block < calendar.start:
        return None
    return round_numbered(calendar, (block - calendar.start) // calendar.length)


def seeds_of(contest_id: str, number: int, block_hash: str, replicates: int) -> tuple[int, ...]:
    """The seeds of a round's replicates, 31 bits each: a function of what nobody knew when sources were committed."""
    names = (f"contest/{contest_id}/{number}/{block_hash.lower()}/{k}" for k in range(replicates))
    return tuple(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") >> 1 for name in names)
