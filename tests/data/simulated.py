"""An index of FineWeb's size: its rows and row groups, not its text."""

from __future__ import annotations

import numpy as np

from distributed_training.data.row_groups import FileGroups, RowGroupIndex

ROWS = 518_500_000  # of the sample of 350 billion tokens
FILES = 510
GROUP = 1000


def fineweb_index(rows: int = ROWS, files: int = FILES, seed: int = 0) -> RowGroupIndex:
    """`rows` rows in `files` files of unequal length; row groups of 1,000 rows, the last one of a file of fewer."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, rows // GROUP), files - 1, replace=False)) * GROUP + rng.integers(
        1, GROUP, files - 1
    )
    counts = np.diff(np.concatenate([[0], cuts, [rows]]))
    return RowGroupIndex(("simulated",), tuple(_file(i, int(count), rng) for i, count in enumerate(counts)))


def _file(number: int, rows: int, rng: np.random.Generator) -> FileGroups:
    groups = -(-rows // GROUP)
    counts = np.full(groups, GROUP, np.int64)
    counts[-1] = rows - GROUP * (groups - 1)
    sizes = rng.integers(1_500_000, 2_000_000, groups)
    starts = 4 + np.concatenate([[0], np.cumsum(3 * sizes)[:-1]])
    return FileGroups(f"{number:05d}.parquet", int(starts[-1] + sizes[-1]), "", "ZSTD", True, counts, starts, sizes)
