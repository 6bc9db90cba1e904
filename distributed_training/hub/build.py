"""From configuration to a hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.download import Timeouts
from distributed_training.hub.hub import Hub
from distributed_training.hub.huggingface import HuggingFaceHub
from distributed_training.hub.retry import RetryPolicy
from template.clock import Clock
from template.config import Secret
from template.errors import ConfigurationError
from template.telemetry import Telemetry

_REPOSITORY = re.compile(r"hf://([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)")
_DIRECTORY = re.compile(r"dir://(/.*)")
_FORMS = "use dir:///absolute/path for a folder, or hf://organisation/name for the Hugging Face Hub"


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Where models are published, and how long a hub on the network is waited for (seconds).

    The token is no part of it: flags can be seen by everybody on the machine.

    Raises:
        ConfigurationError: an unknown form of URL or a value out of its range.
    """

    url: str
    endpoint: str = "https://huggingface.co"
    private: bool = False
    tries: int = 6
    first_delay: float = 1.0
    longest_delay: float = 60.0
    longest_retry_after: float = 300.0
    connect_timeout: float = 10.0
    idle_timeout: float = 60.0
    call_timeout: float = 1800.0
    download_timeout: float = 1800.0

    def __post_init__(self) -> None:
        if not (_REPOSITORY.fullmatch(self.url) or _DIRECTORY.fullmatch(self.url)):
            raise ConfigurationError(f"hub url {self.url!r} is of no known form: {_FORMS}")
        if not self.endpoint.startswith(("https://", "http://")):
            raise ConfigurationError(f"hub endpoint {self.endpoint!r} is not an http(s) address")
        _ = self.retries, self.timeouts  # they check their values

    @property
    def retries(self) -> RetryPolicy:
        return RetryPolicy(
            tries=self.tries,
            first_delay=self.first_delay,
            longest_delay=self.longest_delay,
            longest_retry_after=self.longest_retry_after,
        )

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
        ConfigurationError: a token that cannot be one.
    """
    if token is not None:
        require_token(token)
    if directory := _DIRECTORY.fullmatch(config.url):
        return DirectoryHub(Path(directory[1]), telemetry=telemetry, clock=clock)
    repository = _REPOSITORY.fullmatch(config.url)
    assert repository is not None, "HubConfig lets no other form through"
    return HuggingFaceHub(
        repository[1],
        endpoint=config.endpoint.rstrip("/"),
        private=config.private,
        token=token,
        retries=config.retries,
        timeouts=config.timeouts,
        telemetry=telemetry,
        clock=clock,
    )
