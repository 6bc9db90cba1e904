"""What benchmarks/allreduce.py measures, and what it found: values only, kept as JSON from call to call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.averaging.codecs.codec import bits_per_parameter
from distributed_training.averaging.codecs.registry import pair_named
from distributed_training.averaging.plan import CHUNK

SYSTEMS = ("direct", "libp2p", "hivemind", "gloo")
HIVEMIND_CODECS = ("none", "fp16")  # it has no others in common with us that run with the pinned numpy
# Memory of one process of a system, to know what fits side by side: vectors, and bytes beside them.
FOOTPRINT = {"direct": (2.8, 120e6), "libp2p": (3.0, 150e6), "hivemind": (4.5, 350e6), "gloo": (1.1, 250e6)}


@dataclass(frozen=True, kw_only=True, order=True)
class Case:
    """Systems are compared within a case, in turns. `size` is in float32 values."""

    codec: str
    peers: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.peers} x {self.size / 1e6:g}M {self.codec}"

    @property
    def plain(self) -> float:
        """Bytes that each peer of a butterfly or ring must send without a codec."""
        return 2 * (self.peers - 1) / self.peers * 4 * self.size

    @property
    def theory(self) -> float:
        """The same with the codec: the bits of a part on the way there, those of an average on the way back."""
        share = min(CHUNK, max(1, self.size // self.peers))
        pair = pair_named(self.codec)
        bits = sum(bits_per_parameter(codec, share) for codec in (pair.parts, pair.average))
        return self.plain * bits / 64

    def runs(self, system: str) -> bool:
        """Whether a system has the codec; gloo, which has none, is the floor of every case."""
        return system != "hivemind" or self.codec in HIVEMIND_CODECS

    def footprint(self, system: str) -> float:
        """Bytes that a system's processes are expected to need."""
        vectors, rest = FOOTPRINT[system]
        return self.peers * (vectors * 4 * self.size + rest)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians over repetitions. Seconds are those of the slowest peer, the rest means over peers.

    `wire` is what the loopback interface carried, headers and everything; `sockets` what the system itself counted at
    its sockets; `memory` the peak beyond what was in use before the first round. Bytes.
    """

    seconds: float
    fastest: float
    repetitions: int
    wire: float
    sockets: float | None
    cpu: float
    memory: float | None
    first_byte: float | None
    detail: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One case: what each system did, or why it did not; the machine's load before."""

    case: Case
    systems: dict[str, Measured]
    missing: dict[str, str]
    load: float
    date: str


def save(found: Sequence[Comparison], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(found, key=lambda one: one.case)
    path.write_text(json.dumps([dataclasses.asdict(one) for one in ordered], indent=1) + "\n")


def load(path: Path) -> list[Comparison]:
    """What earlier calls found; nothing if there were none."""
    if not path.exists():
        return []
    return [_comparison(record) for record in json.loads(path.read_text())]


def _comparison(record: dict[str, Any]) -> Comparison:
    systems = {name: Measured(**measured) for name, measured in record.pop("systems").items()}
    return Comparison(case=Case(**record.pop("case")), systems=systems, **record)


def merged(found: Sequence[Comparison], new: Comparison) -> list[Comparison]:
    """The new comparison instead of an older one of its case."""
    return [one for one in found if one.case != new.case] + [new]
