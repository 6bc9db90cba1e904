"""Real text in FineWeb's layout, where it lies beside the repository: the production path against `datasets` itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_training.data.build import build_source
from distributed_training.run import load_run
from tests.servers.datasets import add_dataset
from tests.servers.hub import HubServer

ROOT = Path(__file__).parents[2]
PLACE = Path("shared") / "data" / "fineweb_public_domain"
FOLDERS = [parent / PLACE for parent in ROOT.parents if (parent / PLACE).is_dir()]


@pytest.mark.skipif(not FOLDERS, reason=f"an extra on text that is not part of the repository: no {PLACE} above it")
def test_pages_are_the_rows_that_datasets_streams(dataset_server: HubServer, tmp_path: Path) -> None:
    """From the run file of the production run, only the commit changed: the same rows in the same order."""
    import datasets

    data = load_run(ROOT / "runs" / "gpt2-fineweb.toml").data
    commit = add_dataset(dataset_server, data.path, FOLDERS[0])
    spec = replace(data, revision=commit)
    source = build_source(spec, whole_characters=True, cache=tmp_path)
    rows = datasets.load_dataset(
        str(FOLDERS[0]), name=spec.configuration, split="train", streaming=True, columns=["text"]
    )
    for page in (0, 6, 25, source.pages - 1):  # row groups hold 200 rows: page 6 touches two of them
        expected = [row["text"] for row in itertools.islice(rows.skip(page * spec.page_size), spec.page_size)]
        assert [piece.text.decode() for piece in source.read(page)] == expected
        assert all(piece.ends for piece in source.read(page))
    source.close()
