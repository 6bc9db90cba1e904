"""The run spec: the TOML file that says what is trained, how it is averaged and what is paid for.

`run_id` is the name and a short hash of the whole spec, so two neurons with different specs never mix. Each section
is a frozen dataclass that a component receives; unknown keys, missing keys and impossible values are refused with
the remedy. Load with `load_run("runs/nano.toml")`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distributed_training.averaging.codecs.names import parse_pair
from distributed_training.averaging.rule_names import parse_rule
from template.errors import AveragingError, ConfigurationError

T = typing.TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """`family` names the transformers architecture; `config` its keyword arguments (vocab_size comes from the data)."""

    family: Literal["gpt2", "llama"]
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the text comes from. A page is the unit of assignment, a sample one sequence of `sequence_length` tokens.

    `source`: `stdlib` (the sources of the running Python's standard library), `text` (a folder of text files),
    `parquet` or `jsonl` (a folder with FineWeb's columns), `huggingface` (`path` is a dataset repository on the Hub,
    read at the commit `revision`), `shards` (`path` is a folder, an http(s) address or s3://bucket/prefix with what
    scripts/build_shards wrote). `page_size` is in bytes for text, in tokens for shards, in rows for the others.
    `configuration`, `split`, `revision` and `column` are for `huggingface`. `fingerprint` pins the corpus: a neuron
    that finds another one does not start; empty takes what is found (neurons still compare theirs with each other).
    `max_uids` and `pages_per_epoch` bound what one epoch can assign; `held_out_pages` are never assigned to anyone.
    """

    source: Literal["stdlib", "text", "parquet", "jsonl", "huggingface", "shards"]
    path: str = ""
    tokenizer: str
    sequence_length: int
    page_size: int
    pages_per_micro_batch: int
    pages_per_epoch: int
    max_uids: int
    held_out_pages: int
    configuration: str = ""
    split: str = "train"
    revision: str = ""
    column: str = "text"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name in ("sequence_length", "page_size", "pages_per_micro_batch", "pages_per_epoch", "max_uids"):
            _require(getattr(self, name) >= 1, f"data.{name} must be at least 1")
        _require(self.held_out_pages >= 0, "data.held_out_pages must not be negative")
        _require(
            self.pages_per_epoch % self.pages_per_micro_batch == 0,
            "data.pages_per_epoch must be a multiple of data.pages_per_micro_batch",
        )
        _require(self.source == "stdlib" or bool(self.path), f"data.path is needed for the source '{self.source}'")
        self._check_pins()

    def _check_pins(self) -> None:
        remote = self.source == "huggingface"
        _require(
            not remote or _is_hex(self.revision, 40),
            "data.revision must be the full hash of a commit (40 hex digits): a branch or tag may move, and neurons "
            "that start on different days would train on different text",
        )
        _require(not remote or self.path.count("/") == 1, "data.path must be a dataset repository: organisation/name")
        _require(not remote or bool(self.split and self.column), "data.split and data.column must not be empty")
        for name in ("configuration", "revision"):
            _require(remote or not getattr(self, name), f"data.{name} is for the source 'huggingface' only")
        _require(not self.fingerprint or _is_hex(self.fingerprint, 64), "data.fingerprint must be 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """AdamW, its schedule as a function of the epoch alone (linear warm-up, then cosine), and gradient clipping."""

    learning_rate: float
    minimum_learning_rate: float
    warmup_epochs: int
    decay_epochs: int
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate must be positive")
        _require(
            0 <= self.minimum_learning_rate <= self.learning_rate,
            "optimizer.minimum_learning_rate must lie between 0 and optimizer.learning_rate",
        )
        _require(
            0 <= self.warmup_epochs < self.decay_epochs,
            "optimizer.warmup_epochs must be smaller than optimizer.decay_epochs",
        )
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name} must lie in [0, 1)")
        _require(self.epsilon > 0, "optimizer.epsilon must be positive")
        _require(self.clip_norm > 0, "optimizer.clip_norm must be positive")


@dataclass(frozen=True, kw_only=True)
class EpochSpec:
    """When an epoch ends: at `target_samples` over all miners, or after `max_blocks`, with at least `min_miners`.

    The right to lead passes to the next validator every `turn_blocks`; one leader makes at most `attempts` a turn. A
    validator is who has a permit and at least `validator_stake` (TAO as the chain weighs it): a permit alone is given
    to miners as well, once they own a little of what they earned. Miners that heard of no validator for
    `fallback_blocks` end epochs by themselves, with a try every `turn_blocks` (0: they wait for a validator).

    With `overlap` miners go on computing while a round runs: the gradients of an epoch are taken at the state before,
    so that each update is applied one epoch late. What a miner puts in is then fixed from the first attempt on.
    """

    target_samples: int
    max_blocks: int
    min_miners: int
    turn_blocks: int
    attempts: int
    validator_stake: float
    fallback_blocks: int
    overlap: bool = False

    def __post_init__(self) -> None:
        for name in ("target_samples", "max_blocks", "min_miners", "turn_blocks", "attempts"):
            _require(getattr(self, name) >= 1, f"epoch.{name} must be at least 1")
        _require(self.validator_stake >= 0, "epoch.validator_stake must not be negative")
        slowest = self.max_blocks + self.turn_blocks
        _require(
            self.fallback_blocks == 0 or self.fallback_blocks >= slowest,
            f"epoch.fallback_blocks must be 0 (off) or at least {slowest}, max_blocks + turn_blocks: validators may "
            "merely be slow",
        )


@dataclass(frozen=True, kw_only=True)
class AveragingSpec:
    """The round: codec, the seconds that each state may take, and the weight that must agree before anybody commits.

    `connect_seconds`, `exchange_seconds` and `commit_seconds` are the longest that a leader may give; it gives them as
    long as it has not measured enough rounds, and then their median and `deadline_spread` deviations more, but never
    less than `least_seconds` (averaging/deadlines.py). `answer_seconds` is what a member may take on top of them to
    pause, to apply the average and to answer.

    `reduction` names what a reducer makes of the parts (averaging/robust.py). `validator_share` says how much of the
    reduction a validator does, 1 being an equal share of all members and 0 nothing; the rest is divided among the
    miners by their bandwidth (averaging/shares.py).

    `codec` is how parts, and after a "+" how averages, travel (averaging/codecs/names.py); with `error_feedback` each
    contributor adds what the codec lost of one contribution to its next. `max_weight` is the largest number of samples
    that one contributor can put into an average.
    """

    codec: str
    error_feedback: bool
    connect_seconds: float
    exchange_seconds: float
    commit_seconds: float
    answer_seconds: float
    least_seconds: float
    deadline_spread: float
    reduction: str
    validator_share: float
    quorum: float
    max_weight: float

    def __post_init__(self) -> None:
        states = ("connect_seconds", "exchange_seconds", "commit_seconds")
        for name in (*states, "answer_seconds", "least_seconds", "deadline_spread", "max_weight"):
            _require(getattr(self, name) > 0, f"averaging.{name} must be positive")
        for name in states:
            _require(self.least_seconds <= getattr(self, name), f"averaging.least_seconds must not exceed {name}")
        _require(0 <= self.validator_share <= 1, "averaging.validator_share must lie in [0, 1]")
        try:
            parse_rule(self.reduction)
        except AveragingError as error:
            raise ConfigurationError(f"averaging.reduction: {error}") from error
        try:
            pair = parse_pair(self.codec)
        except AveragingError as error:
            raise ConfigurationError(f"averaging.codec: {error}") from error
        _require(
            not (self.error_feedback and pair.lossless),
            f"averaging.error_feedback must be false: codec '{self.codec}' loses nothing of a contribution",
        )
        _require(0.5 < self.quorum <= 1, "averaging.quorum must lie in (0.5, 1]: less than half lets two groups commit")


@dataclass(frozen=True, kw_only=True)
class ReplaySpec:
    """Audits of a strategy with inner steps: miners commit to where they stand every `stretch` inner steps.

    Of each of at most `audit.miners_per_epoch` miners a validator replays, with the chance `share`, one stretch drawn
    at random. A replay agrees if parameters and inner state come out at most `tolerance` away from those that the miner
    committed to, relative to how far the stretch moved them (scoring/replay.py; benchmarks/replay.py measures it).
    """

    stretch: int
    share: float
    tolerance: float

    def __post_init__(self) -> None:
        _require(self.stretch >= 1, "audit.replay.stretch must be at least 1 inner step")
        _require(0 < self.share <= 1, "audit.replay.share must lie in (0, 1]")
        _require(
            0 < self.tolerance < 1,
            "audit.replay.tolerance must lie in (0, 1): no two machines agree to the last bit, and who trains nothing "
            "is off by 1",
        )


@dataclass(frozen=True, kw_only=True)
class ImprovementSpec:
    """Of a miner whose steps are replayed: what its contribution alone does to the loss (scoring/improvement.py).

    On `batches` micro-batches of its own and as many that nobody was given; one that does no good on either with
    `confidence` fails.
    """

    batches: int
    confidence: float

    def __post_init__(self) -> None:
        _require(self.batches >= 8, "audit.improvement.batches must be at least 8: fewer say too little of the scatter")
        _require(0.99 <= self.confidence <= 0.999, "audit.improvement.confidence must lie between 0.99 and 0.999")


@dataclass(frozen=True, kw_only=True)
class AuditSpec:
    """What a record shows, how many are recomputed, and what has to agree with what.

    `coordinates` gradient values a record, spread over all tensors. Of each of at most `miners_per_epoch` miners, drawn
    at random, a validator recomputes on average the `share` of its samples, but of all of them together no more than
    `overhead` times what one miner does in the epoch (scoring/sampling.py). Comparing and hashing comes on top; with
    it the default stays below 5 % in all (benchmarks/audit.py).

    Of `reducers` miners an epoch, one chunk of their share is averaged again from what was sent to them.

    A record agrees if loss and gradient differ by at most these relative tolerances; `threshold` is the smallest
    agreement that is paid. A contribution agrees with a recomputed record if its signs do by at least `alignment` and
    its size is at most `inflation` times that of the record's gradient (scoring/contribution.py).
    `distributed_training.calibrate` measures all four; `calibration` is the sha256 of the file of what it measured,
    which lies beside the run spec, empty for numbers that nobody measured.
    """

    coordinates: int
    miners_per_epoch: int
    loss_tolerance: float
    gradient_tolerance: float
    threshold: float
    alignment: float = 0.1  # these two are lenient: a calibration gives stricter ones
    inflation: float = 10.0
    share: float = 0.02
    overhead: float = 0.03
    reducers: int = 4
    calibration: str = ""
    replay: ReplaySpec | None = None
    improvement: ImprovementSpec | None = None

    def __post_init__(self) -> None:
        _require(1 <= self.coordinates <= 1024, "audit.coordinates must lie between 1 and 1024")
        _require(0 < self.share <= 1, "audit.share must lie in (0, 1]")
        _require(self.overhead > 0, "audit.overhead must be positive: what nobody recomputes, nobody has to do")
        _require(self.reducers >= 0, "audit.reducers must not be negative")
        _require(self.miners_per_epoch >= 1, "audit.miners_per_epoch must be at least 1")
        for name in ("loss_tolerance", "gradient_tolerance"):
            _require(getattr(self, name) > 0, f"audit.{name} must be positive: no two machines agree to the last bit")
        _require(0 < self.threshold <= 1, "audit.threshold must lie in (0, 1]")
        _require(0 < self.alignment < 0.6, "audit.alignment must lie in (0, 0.6): honest work has 0.64 or more")
        _require(self.inflation > 1, "audit.inflation must be above 1: a mean is as large as its largest part")
        _require(
            self.improvement is None or self.replay is not None,
            "[audit.improvement] needs [audit.replay]: only then do miners show where their steps led to",
        )
        _require(not self.calibration or _is_hex(self.calibration, 64), "audit.calibration must be 64 hex digits")


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """Scores to weights. `bandwidth_share` is beta of the formula, `reference_rate` the bytes/s of full bandwidth.

    After a failed audit a miner earns nothing for `penalty_epochs`. What it earns is held back for `held_epochs`, so
    that audits can find a cheat before it is paid (`calibrate` shows how many of them that takes). Weights are set
    every `weights_interval` blocks.
    """

    ema: float
    bandwidth_share: float
    reference_rate: float
    penalty_epochs: int
    weights_interval: int
    version_key: int
    held_epochs: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.ema <= 1, "scoring.ema must lie in (0, 1]")
        _require(0 <= self.bandwidth_share <= 1, "scoring.bandwidth_share must lie in [0, 1]")
        _require(self.reference_rate > 0, "scoring.reference_rate must be positive")
        _require(self.penalty_epochs >= 0, "scoring.penalty_epochs must not be negative")
        _require(0 <= self.held_epochs <= 200, "scoring.held_epochs must lie in [0, 200]: the log has all of them")
        _require(self.weights_interval >= 1, "scoring.weights_interval must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One model being trained.

    `strategy` and its `hyperparameters` are, in the file, either one name or a section [strategy] with a `name`.
    """

    name: str
    seed: int
    strategy: str
    precision: Literal["float32", "bfloat16"]
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    epoch: EpochSpec
    averaging: AveragingSpec
    audit: AuditSpec
    scoring: ScoringSpec
    hyperparameters: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ok = self.name and all(c.isascii() and (c.isdigit() or c.islower() or c == "-") for c in self.name)
        _require(bool(ok) and len(self.name) <= 64, "name must be 1-64 of a-z, 0-9 and '-'")

    @functools.cached_property  # asked for with every request
    def run_id(self) -> str:
        """Name and the first 12 hex digits of sha256 over the canonical JSON of what the spec says."""
        canonical = json.dumps(_said(dataclasses.asdict(self)), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def _said(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table without optional sections that are not there: they change nobody's run id."""
    kept = {key: _said(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    return {key: value for key, value in kept.items() if value is not None and (key, value) != ("hyperparameters", {})}


def load_run(path: str | Path) -> RunSpec:
    """Read a run spec.

    Raises:
        ConfigurationError: no such file, not TOML, unknown or missing key, wrong type or impossible value.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(str(p) for p in path.parent.glob("*.toml"))) or "none in that folder"
        raise ConfigurationError(f"no run file at {path}; run files there: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}") from error
    try:
        return from_table(RunSpec, _with_strategy(table))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _with_strategy(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with a section [strategy] taken apart: its name, and the hyper-parameters beside it."""
    _require("hyperparameters" not in table, "unknown key 'hyperparameters': they stand in [strategy], beside its name")
    section = table.get("strategy")
    if not isinstance(section, Mapping):
        return dict(table)
    _require("name" in section, "missing key 'strategy.name'")
    values = {key: value for key, value in section.items() if key != "name"}
    for key, value in values.items():
        _require(type(value) in (str, int, float), f"'strategy.{key}' must be a number or text; found {value!r}")
    return {**table, "strategy": section["name"], "hyperparameters": values}


def from_table(cls: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
    """Fill a dataclass of sections from a table.

    Raises:
        ConfigurationError: an unknown or missing key, or a wrong type, by its dotted name.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast("type[Any]", cls))}
    for key in table:
        _require(key in fields, f"unknown key '{prefix}{key}'; known: {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name, one in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], prefix + name)
        else:
            optional = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
            _require(optional, f"missing key '{prefix}{name}'")
    return cls(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:  # an optional section
        return _convert(typing.get_args(hint)[0], value, name)
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, Mapping), f"'{name}' must be a section [{name}]")
        return from_table(typing.cast("type[Any]", hint), value, f"{name}.")
    if origin is Literal:
        allowed = typing.get_args(hint)
        _require(value in allowed, f"'{name}' must be one of {', '.join(map(str, allowed))}; found {value!r}")
        return value
    if origin is tuple:
        _require(isinstance(value, list), f"'{name}' must be a list")
        return tuple(_convert(typing.get_args(hint)[0], item, name) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping), f"'{name}' must be a section [{name}]")
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    _require(type(value) is hint, f"'{name}' must be of type {hint.__name__}; found {value!r}")
    return value
