"""What one contributor sends in a round: all parts, encoded before anything moves, and one hash that binds it to them.

    root  =  sha256 over (reducer, share)     share  =  BLAKE3 over its chunks' hashes     chunk  =  BLAKE3 of its bytes

The root is told to every member with the control stream. Each reducer gets the hashes of its own share's chunks ahead
of them and takes no chunk into its average that does not fit; and it tells every member which roots it goes by, so
that one who was told another one gives the round up (exchange.py). In a round that completes, all members so know the
same roots, and every honest reducer averaged the bytes behind them. Its own part goes into its own share uncoded; it is
bound like the others.

Without a codec the bytes are the contribution's own memory; with one they are kept, which takes what is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import blake3
import numpy as np

from distributed_training.averaging.codec import Codec, CodecPair, Floats, as_it_lies, octets
from distributed_training.averaging.feedback import Attempt
from distributed_training.averaging.partition import chunks
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.traffic import Effort


class Packing:
    """The parts of `contribution` [size], encoded in chunks, by reducer and number."""

    def __init__(
        self,
        plan: RoundPlan,
        uid: int,
        codecs: CodecPair,
        contribution: Floats,
        attempt: Attempt | None,
        effort: Effort,
    ) -> None:
        """Encodes and hashes all of it, which takes a while: call it in a thread.

        Raises:
            AveragingError: a value has no code.
        """
        self.plan = plan
        self.own = contribution[:0]  # what it puts into its own share
        self._payloads: dict[int, list[memoryview]] = {}
        self._chunks: dict[int, tuple[str, ...]] = {}
        for reducer, (start, stop) in plan.ranges().items():
            if stop == start:
                continue
            part, pieces = contribution[start:stop], chunks(stop - start, plan.chunk)
            with effort.spent("encode"):
                if reducer == uid:
                    self.own = part if attempt is None else attempt.whole(start, part, codecs.largest)
                    payloads = [octets(self.own[low:high]) for low, high in pieces]
                else:
                    payloads = [_encoded(codecs.parts, attempt, start + low, part[low:high]) for low, high in pieces]
            with effort.spent("hash"):
                self._chunks[reducer] = tuple(chunk_hash(payload) for payload in payloads)
            self._payloads[reducer] = payloads
        self.shares = {reducer: share_hash(hashes) for reducer, hashes in self._chunks.items()}
        self.root = root_hash(self.shares)

    def chunk_hashes(self, reducer: int) -> tuple[str, ...]:
        """Of what goes to a reducer, in order."""
        return self._chunks[reducer]

    def payload(self, reducer: int, index: int) -> memoryview:
        """The bytes of one chunk for a reducer; raises KeyError or IndexError if there is none."""
        return self._payloads[reducer][index]


def chunk_hash(payload: bytes | memoryview) -> str:
    """Names the bytes of a chunk."""
    return str(blake3.blake3(payload).hexdigest())


def share_hash(hashes: Sequence[str]) -> str:
    """Names all chunks of a part."""
    return str(blake3.blake3("".join(hashes).encode()).hexdigest())


def root_hash(shares: Mapping[int, str]) -> str:
    """Names all parts of a contribution, by reducer."""
    lines = "".join(f"{uid} {digest}\n" for uid, digest in sorted(shares.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def is_bound(root: str, shares: Iterable[tuple[int, str]], reducer: int, hashes: Sequence[str], count: int) -> bool:
    """Whether these are the hashes of the `count` chunks for `reducer` that a root stands for."""
    stated = dict(shares)
    return len(hashes) == count and stated.get(reducer) == share_hash(hashes) and root_hash(stated) == root


def _encoded(codec: Codec, attempt: Attempt | None, start: int, values: Floats) -> memoryview:
    if attempt is not None:
        return attempt.encode(codec, start, values)
    return octets(np.ascontiguousarray(values)) if as_it_lies(codec) else codec.encode(values)
