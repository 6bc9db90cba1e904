"""What an operator can say of a corpus that lies elsewhere, and the parts that are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distributed_training.data.cache import BlockCache
from distributed_training.data.http import HttpStore, ReadTimeouts
from distributed_training.data.prefetch import PrefetchConfig
from distributed_training.data.s3 import S3Store
from distributed_training.data.store import FolderStore, Patience, Patient, Shelf, Store
from distributed_training.services.retry import RetryPolicy
from template.config import Secret, option
from template.errors import ConfigurationError
from template.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """How a corpus on the network is read."""

    index: str | None = option(
        "file or http(s) address of a ready index of the dataset, checked by its hash; default: build it", default=None
    )
    s3_endpoint: str | None = option(
        "address of the S3 API of a corpus at s3://bucket/prefix, e.g. of R2; default: Amazon's", default=None
    )
    cache_mb: int = option("megabytes of the corpus kept in the neuron's folder", default=2048)
    ahead: int = option("micro-batches read ahead of training", default=8)
    readers: int = option("threads that read ahead", default=2)
    tries: int = option("how often a read is tried before the corpus counts as away", default=8)
    seconds: float = option("how long a read is tried at most", default=90.0)
    connect_timeout: float = option("seconds to connect", default=10.0)
    idle_timeout: float = option("seconds without a byte", default=20.0)
    answer_timeout: float = option("seconds for one answer", default=60.0)

    def __post_init__(self) -> None:
        if self.cache_mb < 0:
            raise ConfigurationError("--corpus.cache_mb must not be negative")
        _ = self.patience, self.timeouts, self.prefetch  # they check their values

    @property
    def patience(self) -> Patience:
        policy = RetryPolicy(tries=self.tries, first_delay=0.5, longest_delay=20.0, longest_retry_after=60.0)
        return Patience(policy=policy, seconds=self.seconds)

    @property
    def timeouts(self) -> ReadTimeouts:
        return ReadTimeouts(connect=self.connect_timeout, idle=self.idle_timeout, answer=self.answer_timeout)

    @property
    def prefetch(self) -> PrefetchConfig:
        return PrefetchConfig(ahead=self.ahead, readers=self.readers, next_epoch=min(2, self.ahead))


def patient(store: Store, config: CorpusConfig, telemetry: Telemetry | None) -> Patient:
    """A store that is tried as long as the operator wants; a folder of this machine once."""
    here = Patience(policy=RetryPolicy(tries=1), rest=0.0)
    return Patient(store, here if isinstance(store, FolderStore) else config.patience, telemetry=telemetry)


def open_address(address: str, config: CorpusConfig, token: Secret | None = None) -> Store:
    """The store behind a folder, an http(s) address or s3://bucket/prefix.

    Raises:
        ConfigurationError: an address that is none.
    """
    if address.startswith(("http://", "https://")):
        return HttpStore(address, timeouts=config.timeouts, token=token)
    if address.startswith("s3://"):
        return S3Store(address, endpoint=config.s3_endpoint, timeouts=config.timeouts)
    return FolderStore(Path(address).expanduser())


def open_shelf(address: str, config: CorpusConfig) -> Shelf:
    """The same where files can be written: a folder or s3://bucket/prefix.

    Raises:
        ConfigurationError: another address.
    """
    if address.startswith("s3://"):
        return S3Store(address, endpoint=config.s3_endpoint, timeouts=config.timeouts)
    if "://" in address:
        raise ConfigurationError(f"{address} cannot be written to: give a folder or s3://bucket/prefix")
    return FolderStore(Path(address).expanduser())


def read_file(address: str, limit: int, config: CorpusConfig, telemetry: Telemetry | None) -> bytes:
    """One whole file from a path or an http(s) address, `limit` bytes at most.

    Raises:
        SourceUnavailable: it cannot be read.
    """
    folder, _, name = address.rpartition("/")
    store = patient(open_address(folder or ".", config), config, telemetry)
    try:
        return store.whole(name, limit)
    finally:
        store.close()


def open_cache(folder: Path | None, config: CorpusConfig) -> BlockCache | None:
    """The cache of what was read, below `folder`; none without a folder or room."""
    return BlockCache(folder / "blocks", config.cache_mb << 20) if folder and config.cache_mb else None
