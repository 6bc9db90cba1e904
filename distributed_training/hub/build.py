"""From configuration to a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.download import Timeouts
from distributed_training.hub.hub import Hub
from distributed_training.hub.huggingface import HuggingFaceHub
from distributed_training.hub.retention import Retention
from distributed_training.hub.s3 import S3Hub
from distributed_training.hub.s3_client import S3Address
from distributed_training.services.retry import RetryPolicy
from distributed_training.services.s3 import Place, read_place
from template.clock import Clock
from template.config import Secret, option
from template.errors import ConfigurationError
from template.telemetry import Telemetry

_REPOSITORY = re.compile(r"hf://([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)")
_DIRECTORY = re.compile(r"dir://(/.*)")
_PREFIX = re.compile(r"(?:[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*)?")
_FORMS = (
    "use dir:///absolute/path for a folder, hf://organisation/name for the Hugging Face Hub, or s3://bucket/prefix for "
    "Amazon S3, R2 and their like"
)
_HUGGING_FACE = "https://huggingface.co"
_LEAST_PART = 5 << 20  # bytes; S3 takes no smaller one but the last


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Where models are published, and how long a hub on the network is waited for (seconds).

    No credential is part of it: flags can be seen by everybody on the machine.

    Raises:
        ConfigurationError: an unknown form of URL or a value out of its range.
    """

    url: str = option("dir:///path, hf://organisation/name, or s3://bucket/prefix (credentials: AWS_* or AWS_PROFILE)")
    endpoint: str | None = option(
        "address of the hub's API, where it is not the service's own (R2, a mirror)", default=None
    )
    private: bool = option("make a Hugging Face repository private when it is created", default=False)
    region: str | None = option("the bucket's region; default: of AWS_REGION or the profile", default=None)
    public_url: str | None = option(
        "where the bucket can be read without credentials, if not at the S3 API", default=None
    )
    part_bytes: int = option("larger files go to a bucket in parts of so many bytes", default=64 << 20)
    keep_last: int = option("how many of the newest epochs the hub keeps; 0 keeps every epoch", default=50)
    keep_every: int = option("of older ones, those divisible by this are kept, too; 0 keeps none", default=50)
    tries: int = 6
    first_delay: float = 1.0
    longest_delay: float = 60.0
    longest_retry_after: float = 300.0
    connect_timeout: float = 10.0
    idle_timeout: float = 60.0
    call_timeout: float = 1800.0
    download_timeout: float = 1800.0

    def __post_init__(self) -> None:
        if not (_REPOSITORY.fullmatch(self.url) or _DIRECTORY.fullmatch(self.url) or _place(self.url)):
            raise ConfigurationError(f"hub url {self.url!r} is of no known form: {_FORMS}")
        for name, address in (("endpoint", self.endpoint), ("public_url", self.public_url)):
            if address is not None and not address.startswith(("https://", "http://")):
                raise ConfigurationError(f"hub {name} {address!r} is not an http(s) address")
        if self.part_bytes < _LEAST_PART:
            raise ConfigurationError(f"hub part_bytes must be at least {_LEAST_PART}: S3 takes no smaller parts")
        _ = self.retries, self.timeouts, self.retention  # they check their values

    @property
    def retries(self) -> RetryPolicy:
        return RetryPolicy(
            tries=self.tries,
            first_delay=self.first_delay,
            longest_delay=self.longest_delay,
            longest_retry_after=self.longest_retry_after,
        )

    @property
    def retention(self) -> Retention:
        return Retention(keep_last=self.keep_last, keep_every=self.keep_every)

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(
            connect=self.connect_timeout,
            idle=self.idle_timeout,
            call=self.call_timeout,
            download=self.download_timeout,
        )


def require_token(token: Secret) -> None:
    """Refuse what cannot stand in an HTTP header, a trailing newline mostly; the message does not repeat it.

    Raises:
        ConfigurationError: empty, or with characters that no token has.
    """
    value = token.reveal()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigurationError(
            "the hub token is empty or has spaces, line ends or non-ASCII characters in it: copy it again"
        )


def build_hub(config: HubConfig, *, token: Secret | None, telemetry: Telemetry, clock: Clock) -> Hub:
    """The hub that `config.url` names. Opens no connection and creates nothing.

    Raises:
        ConfigurationError: a token that cannot be one, or an AWS profile that is not there.
    """
    if token is not None:
        require_token(token)
    if directory := _DIRECTORY.fullmatch(config.url):
        return DirectoryHub(Path(directory[1]), telemetry=telemetry, clock=clock)
    if place := _place(config.url):
        return _s3_hub(config, place, telemetry, clock)
    repository = _REPOSITORY.fullmatch(config.url)
    assert repository is not None, "HubConfig lets no other form through"
    return HuggingFaceHub(
        repository[1],
        endpoint=_address(config.endpoint) or _HUGGING_FACE,
        private=config.private,
        token=token,
        retries=config.retries,
        timeouts=config.timeouts,
        telemetry=telemetry,
        clock=clock,
    )


def _place(url: str) -> Place | None:
    """The prefix of a bucket that `url` names; its objects have addresses without escapes."""
    place = read_place(url)
    return place if place and _PREFIX.fullmatch(place.prefix) else None


def _s3_hub(config: HubConfig, place: Place, telemetry: Telemetry, clock: Clock) -> Hub:
    address = S3Address(
        bucket=place.bucket,
        prefix=place.prefix,
        endpoint=_address(config.endpoint),
        region=config.region,
        public_url=_address(config.public_url),
    )
    return S3Hub(
        address,
        part_bytes=config.part_bytes,
        retries=config.retries,
        timeouts=config.timeouts,
        telemetry=telemetry,
        clock=clock,
    )


def _address(given: str | None) -> str | None:
    return given.rstrip("/") if given else None
