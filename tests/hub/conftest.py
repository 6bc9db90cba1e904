"""Hubs to test, a folder to publish, and a Hugging Face library that knows nothing of this machine or the internet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.download import Timeouts
from distributed_training.hub.hub import Hub, ModelTag
from distributed_training.hub.huggingface import HuggingFaceHub
from distributed_training.hub.memory import MemoryHub
from distributed_training.hub.s3 import S3Hub
from distributed_training.hub.s3_client import S3Address
from distributed_training.services.retry import RetryPolicy
from template.config import Secret
from template.telemetry import MemorySink, Telemetry
from tests.servers.hub import HubServer, Repository
from tests.servers.s3 import S3Server

TOKEN = "hf_writerwriterwriter"
READER = "hf_readerreaderreader"
REPOSITORY = "org/nano"
KEY, KEY_SECRET = "AKIAWRITERWRITERWRIT", "secretsecretsecretsecretsecretsecretsecr"
READING_KEY = "AKIAREADERREADERREAD"

# huggingface_hub 2.4.0 uploads LFS files with an argument that its HTTP client wants renamed
library_warns = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

MakeFolder = Callable[..., Path]
MakeTag = Callable[..., ModelTag]
MakeHuggingFaceHub = Callable[..., HuggingFaceHub]
MakeS3Hub = Callable[..., S3Hub]


class HastyClock:
    """The machine's time that a sleep puts forward instead of waiting; `slept` keeps what was asked."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def time(self) -> float:
        return 1_700_000_000.0 + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock() -> HastyClock:
    return HastyClock()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def telemetry(sink: MemorySink, clock: HastyClock) -> Telemetry:
    return Telemetry([sink], clock)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A model folder as the engine leaves it; `seed` decides the weights."""

    def make(seed: int = 0, name: str = "model") -> Path:
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        weights = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
        save_file({"w": weights}, folder / "model.safetensors")
        save_file({"m": weights * 0}, folder / "optimizer.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        (folder / "state.json").write_text(json.dumps({"seed": seed}))
        return folder

    return make


@pytest.fixture
def make_tag() -> MakeTag:
    def make(epoch: int = 7, state: str = "a", run_id: str = "nano-0123456789ab") -> ModelTag:
        return ModelTag(
            run_id=run_id,
            epoch=epoch,
            state_hash=state * 64,
            samples=512,
            participants=(1, 4, 9),
            held_out_loss=3.25,
        )

    return make


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(tokens={TOKEN: "write", READER: "read"}) as running:
        running.repositories[REPOSITORY] = Repository(private=False)
        yield running


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: HubServer) -> Iterator[None]:
    """The library reads its environment when it is imported, which another test may have done: set what it read."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import _detect_agent, _http

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_XET_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hf" / name))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "hf" / "harnesses.json"))
    monkeypatch.setattr(_detect_agent, "_registry", None)
    before = _http._GLOBAL_CLIENT_FACTORY
    yield
    huggingface_hub.set_client_factory(before)  # closes the session, too


@pytest.fixture
def make_huggingface_hub(
    server: HubServer, library: None, telemetry: Telemetry, clock: HastyClock
) -> MakeHuggingFaceHub:
    """A hub at the test server that gives up after three tries."""

    def make(
        token: str | None = TOKEN,
        repository: str = REPOSITORY,
        endpoint: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> HuggingFaceHub:
        return HuggingFaceHub(
            repository,
            endpoint=endpoint or server.url,
            private=False,
            token=Secret(token) if token else None,
            retries=RetryPolicy(tries=3),
            timeouts=timeouts or Timeouts(connect=5, idle=5, call=30, download=30),
            telemetry=telemetry,
            clock=clock,
            jitter=lambda: 0.0,
        )

    return make


@pytest.fixture
def s3_server() -> Iterator[S3Server]:
    with S3Server(keys={KEY: "write", READING_KEY: "read"}) as running:
        yield running


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets the credentials that boto3 finds: these, and none of this machine."""

    def set_to(key: str | None, profile: str | None) -> None:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "aws" / name))
        if key is not None:
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY_SECRET)
        if profile is not None:
            monkeypatch.setenv("AWS_PROFILE", profile)

    return set_to


@pytest.fixture
def make_s3_hub(s3_server: S3Server, aws: Callable[..., None], telemetry: Telemetry, clock: HastyClock) -> MakeS3Hub:
    """A hub at the test server that gives up after three tries."""

    def make(
        key: str | None = KEY,
        profile: str | None = None,
        bucket: str = "models",
        prefix: str = "org/nano",
        endpoint: str | None = None,
        public_url: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> S3Hub:
        aws(key, profile)
        address = S3Address(
            bucket=bucket, prefix=prefix, endpoint=endpoint or s3_server.url, region=None, public_url=public_url
        )
        return S3Hub(
            address,
            part_bytes=5 << 20,
            retries=RetryPolicy(tries=3),
            timeouts=timeouts or Timeouts(connect=5, idle=5, call=30, download=30),
            telemetry=telemetry,
            clock=clock,
            jitter=lambda: 0.0,
        )

    return make


@pytest.fixture(params=["memory", "directory", "huggingface", "s3"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, telemetry: Telemetry, clock: HastyClock) -> Hub:
    """An empty hub of each kind."""
    if request.param == "memory":
        return MemoryHub(telemetry=telemetry, clock=clock)
    if request.param == "directory":
        return DirectoryHub(tmp_path / "hub", telemetry=telemetry, clock=clock)
    made: Hub = request.getfixturevalue(f"make_{request.param}_hub")()
    return made
