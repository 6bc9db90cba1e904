"""Run specs of every strategy of the live subnet, with a tiny model."""

from __future__ import annotations

import dataclasses
from typing import Any

from distributed_training.run import ReplaySpec, RunSpec
from tests.engine.tiny import spec

REPLAY = ReplaySpec(stretch=2, share=1.0, tolerance=0.01)
SPARSE = {"codec": "topk32-int2-block512+int8-block256", "error_feedback": True}


def live(name: str, *, averaging: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
    """A spec that the strategy accepts; `averaging` and other sections may be changed."""
    plain = spec()
    steps = name != "gradient-averaging"
    codec = SPARSE if name == "sparseloco" else {}
    fields: dict[str, Any] = {
        "strategy": name,
        "averaging": dataclasses.replace(plain.averaging, **{**codec, **(averaging or {})}),
        "audit": dataclasses.replace(plain.audit, replay=REPLAY if steps else None),
    }
    return spec(**{**fields, **changes})
