"""A dataset on the Hugging Face Hub as a corpus: a row is a document, a page is `page_size` rows.

`datasets` says which files a configuration and split consist of, at a pinned commit. It does not read them: its
streaming goes through a corpus from the front and finds row 400,000,000 by reading what lies before, while miners and
validators need any page at once and nothing else. So pages are found by an index of row groups (row_groups.py), and a
row group's text column is read by one range request, decoded from its own bytes (column_chunk.py) and kept in a
bounded cache. `HF_ENDPOINT` chooses another server, as everywhere in the libraries of Hugging Face.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distributed_training.data.cache import BlockCache
from distributed_training.data.column_chunk import decode
from distributed_training.data.row_groups import RowGroupIndex, RowMap, build_row_groups, open_index, read_index
from distributed_training.data.source import Paging, Piece
from distributed_training.data.store import Patient, Store
from distributed_training.services.retry import Transient
from template.config import Secret
from template.errors import ConfigurationError, DataError, SourceUnavailable

INDEX_LIMIT = 1 << 30  # bytes of a ready index


@dataclass(frozen=True)
class Dataset:
    """What is read: `repository` on the Hub at commit `revision`, the files of one configuration and split."""

    repository: str
    configuration: str
    split: str
    revision: str
    column: str

    @property
    def origin(self) -> tuple[str, ...]:
        return (self.repository, self.configuration, self.split, self.revision, self.column)

    @property
    def key(self) -> str:
        """Names this dataset in a cache."""
        return hashlib.sha256("\n".join(self.origin).encode()).hexdigest()[:16]


class DatasetSource:
    """A `Source` over the row groups of `index` in `store`. `cache` None: every page is read anew."""

    skipped = ()

    def __init__(self, store: Store, index: RowGroupIndex, page_size: int, cache: BlockCache | None) -> None:
        self._store = store
        self._files = index.files
        self._cache = cache
        self._rows = RowMap(index)
        self._paging = Paging([self._rows.rows], page_size)
        self.pages, self.fingerprint = self._paging.pages, index.fingerprint

    def read(self, page: int) -> tuple[Piece, ...]:
        first, stop = self._paging.limits(page)
        pieces: list[Piece] = []
        while first < stop:  # one turn for each row group that the page touches
            texts = self._of_group(first, stop - first)
            pieces += (Piece(text, ends=True) for text in texts)
            first += len(texts)
        return tuple(pieces)

    def close(self) -> None:
        """End the reading of all threads."""
        self._store.close()

    def _of_group(self, row: int, count: int) -> list[bytes]:
        """The texts from `row` of the corpus on: `count`, or those to the end of its row group."""
        number, group, place = (int(found[0]) for found in self._rows.locate(np.array([row])))
        file, chunk = self._files[number], self._chunk(number, group)
        try:
            return decode(chunk, int(file.rows[group]), file.layout, place, count)
        except DataError as error:
            raise DataError(f"row group {group} of {file.name}: {error}") from error

    def _chunk(self, number: int, group: int) -> bytes:
        file = self._files[number]
        start, size = int(file.starts[group]), int(file.sizes[group])

        def fetch() -> bytes:
            return self._store.read(file.name, start, start + size)

        return self._cache.get(f"{self.fingerprint}/{number}/{group}", fetch) if self._cache else fetch()


def files_address(dataset: Dataset) -> str:
    """Where the Hub serves the dataset's files."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{dataset.repository}/resolve/{dataset.revision}"


def find_index(
    dataset: Dataset,
    store: Patient,
    cache: Path | None,
    ready: Callable[[], bytes] | None = None,
    token: Secret | None = None,
) -> RowGroupIndex:
    """The index from `cache`; or a ready one; or one built from the footers of all files; kept in `cache`.

    Raises:
        ConfigurationError: there is no such dataset, or it is not of strings in Parquet files.
        DataError: the ready index is not of this dataset.
        SourceUnavailable: the Hub cannot be read.
    """
    path = cache / f"dataset-{dataset.key}.json" if cache else None
    found = open_index(path, dataset.origin) if path else None
    if found is not None:
        return found
    index = read_index(ready(), dataset.origin) if ready else _build(dataset, store, path, token)
    if path:
        index.save(path)
    return index


def _build(dataset: Dataset, store: Patient, path: Path | None, token: Secret | None) -> RowGroupIndex:
    names = store.attempt(lambda: data_files(dataset, token))
    partial = path.with_suffix(".partial") if path else None
    return build_row_groups(store, names, dataset.column, dataset.origin, partial)


def data_files(dataset: Dataset, token: Secret | None = None) -> list[str]:
    """The names of the files, in order of their code points, as `datasets` resolves them. One try.

    Raises:
        ConfigurationError: no such dataset, configuration or split.
        Transient: the Hub does not answer, or not as it should.
    """
    import datasets  # heavy, and only needed where an index is built
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    where = f"{dataset.repository} at {dataset.revision[:12]}"
    try:
        builder = datasets.load_dataset_builder(
            dataset.repository,
            name=dataset.configuration or None,
            revision=dataset.revision,
            token=token.reveal() if token else False,
        )
    except (DatasetNotFoundError, DataFilesNotFoundError) as error:
        raise ConfigurationError(f"data.path: there is no dataset {where}: {_line(error)}") from None
    except ValueError as error:  # an unknown configuration, told with the known ones
        raise ConfigurationError(f"data.configuration: {_line(error)}") from None
    except OSError as error:  # ConnectionError and the Hub library's own errors among them
        raise Transient(f"{where}: {_line(error)}") from None
    if dataset.split not in builder.config.data_files:
        known = ", ".join(map(str, builder.config.data_files))
        raise ConfigurationError(f"data.split: {where} has no split '{dataset.split}'; it has {known}")
    return sorted(_name_of(str(file), dataset) for file in builder.config.data_files[dataset.split])


def _name_of(url: str, dataset: Dataset) -> str:
    prefix = f"hf://datasets/{dataset.repository}@{dataset.revision}/"
    if not url.startswith(prefix):
        raise SourceUnavailable(f"{url} does not lie in {dataset.repository} at {dataset.revision}")
    return url.removeprefix(prefix)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
