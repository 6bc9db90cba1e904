"""What a validator keeps of the parts that pass through its share of a reduction, for the contribution check."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from distributed_training.averaging.witness import Watch
from distributed_training.engine.coordinates import coordinates
from distributed_training.model.layout import Layout
from distributed_training.run import RunSpec

DRAWN = 1 << 16  # values of each sender: 256 KiB


def watching(spec: RunSpec, layout: Layout) -> Callable[[int], Watch]:
    """For the round of an epoch: the coordinates that records show, and others that nobody else knows."""

    def watch(epoch: int) -> Watch:
        known = coordinates(spec.run_id, epoch, layout, spec.audit.coordinates)
        return Watch(known, DRAWN, secrets.randbits(63))

    return watch
