"""The cache of blocks: bounded, checked, and never a reason to stop."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distributed_training.data.cache import BlockCache
from template.errors import ConfigurationError, SourceUnavailable


class Maker:
    """Counts how often a block had to be made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def get(self, cache: BlockCache, key: str, size: int = 100) -> bytes:
        def make() -> bytes:
            self.made.append(key)
            return key.encode() * size

        found = cache.get(key, make)
        assert found == key.encode() * size
        return found


def test_a_block_is_made_once(tmp_path: Path) -> None:
    """Also for a cache that is opened later on the same folder."""
    maker, cache = Maker(), BlockCache(tmp_path, 10_000)
    for key in ("a", "b", "a"):
        maker.get(cache, key)
    maker.get(BlockCache(tmp_path, 10_000), "b")
    assert maker.made == ["a", "b"]


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Bytes on disk never exceed the bound, whatever is asked for."""
    maker, cache = Maker(), BlockCache(tmp_path, 500)
    for key in ("a", "b", "c", "a", "d"):  # 132 bytes each: three fit
        maker.get(cache, key)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == cache.size <= 500
    maker.get(cache, "a")
    maker.get(cache, "b")
    assert maker.made == ["a", "b", "c", "d", "b"]


def test_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    """What was read last before it is kept longest after it; a smaller bound holds at once."""
    maker, cache = Maker(), BlockCache(tmp_path, 1000)
    for age, key in enumerate(("a", "b", "c")):
        maker.get(cache, key)
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, ns=(age, age))
    again = BlockCache(tmp_path, 300)
    assert again.size == 264
    maker.get(again, "c")
    maker.get(again, "b")
    assert maker.made == ["a", "b", "c"]


@pytest.mark.parametrize("spoilt", [b"", b"x", b"longer"], ids=["emptied", "changed", "longer"])
def test_spoiled_blocks_are_made_again(tmp_path: Path, spoilt: bytes) -> None:
    """A file emptied, cut short and changed, or made longer is no block."""
    maker, cache = Maker(), BlockCache(tmp_path, 10_000)
    maker.get(cache, "a")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(data + spoilt if spoilt == b"longer" else data[: 50 * len(spoilt)] + spoilt)
    maker.get(BlockCache(tmp_path, 10_000), "a")
    maker.get(BlockCache(tmp_path, 10_000), "a")
    assert maker.made == ["a", "a"]


def test_failure_to_make_leaves_nothing(tmp_path: Path) -> None:
    """An outage goes to the caller and is not kept."""
    cache = BlockCache(tmp_path, 1000)

    def fail() -> bytes:
        raise SourceUnavailable("down")

    with pytest.raises(SourceUnavailable):
        cache.get("a", fail)
    assert not list(tmp_path.iterdir())


def test_too_large_a_block_passes_through(tmp_path: Path) -> None:
    """It is not kept, and nothing is evicted for it."""
    maker, cache = Maker(), BlockCache(tmp_path, 500)
    maker.get(cache, "a")
    maker.get(cache, "b", size=5000)
    maker.get(cache, "a")
    assert maker.made == ["a", "b"]


def test_a_folder_that_vanishes_costs_reads_only(tmp_path: Path) -> None:
    """The blocks are read from afar again; the run goes on."""
    folder = tmp_path / "cache"
    maker, cache = Maker(), BlockCache(folder, 1000)
    maker.get(cache, "a")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    maker.get(cache, "a")
    maker.get(cache, "b")
    assert maker.made == ["a", "a", "b"]


def test_threads_may_share_it(tmp_path: Path) -> None:
    """Eight threads on a cache that is too small for what they want get the right bytes."""
    maker, cache = Maker(), BlockCache(tmp_path, 700)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: maker.get(cache, "abcdefghij"[i % 10]), range(400)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == cache.size <= 700


def test_impossible_folder_is_refused(tmp_path: Path) -> None:
    """At the start, with the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be kept in"):
        BlockCache(tmp_path / "file" / "cache", 1000)
