"""What the engine needs to know of a micro-batch; the data loader's type has these attributes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

IGNORED = -100  # a label that does not count


class MicroBatch(Protocol):
    """S samples of L tokens. `labels[s, t]` is the token that follows `input_ids[s, t]`, or -100: already shifted."""

    @property
    def number(self) -> int:
        """k of the assignment."""

    @property
    def pages(self) -> tuple[int, ...]:
        """The dataset indices it was made of."""

    @property
    def input_ids(self) -> npt.NDArray[np.int64]:
        """int64 [S, L]."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [S, L]."""

    @property
    def samples(self) -> int:
        """How many samples it counts for: its weight in the average."""
