"""The pure parts: values, manifest, card, secrets, configuration."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.hub.build import HubConfig, build_hub, require_token
from distributed_training.hub.card import card
from distributed_training.hub.directory import DirectoryHub
from distributed_training.hub.hub import FileDigest, Release, manifest_of, read_manifest
from distributed_training.hub.huggingface import HuggingFaceHub
from distributed_training.hub.s3 import S3Hub
from template.clock import SystemClock
from template.config import Secret
from template.errors import ConfigurationError, HubError
from template.telemetry import Telemetry

HASH = "0f" * 32


def a_release(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "run_id": "nano-0123456789ab",
        "epoch": 12,
        "state_hash": HASH,
        "samples": 512,
        "participants": (3, 200),
        "held_out_loss": 2.5,
        "files": (FileDigest(name="config.json", size=2, sha256=HASH),),
    }
    return Release(**values | changes)


@given(
    epoch=st.integers(0, 2**53),
    samples=st.integers(0, 2**53),
    participants=st.lists(st.integers(0, 65535)).map(tuple),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_manifest_says_all_of_a_release(
    epoch: int, samples: int, participants: tuple[int, ...], loss: float | None
) -> None:
    """Written and read again it is equal, to the last bit of the loss."""
    release = a_release(epoch=epoch, samples=samples, participants=participants, held_out_loss=loss)
    assert read_manifest(manifest_of(release), epoch) == release


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "12"),
        ("epoch", True),
        ("samples", 1.5),
        ("samples", None),
        ("state_hash", "xyz"),
        ("participants", [70000]),
        ("held_out_loss", "low"),
        ("files", []),
        ("files", [{"name": "/etc/passwd", "size": 1, "sha256": HASH}]),
        ("files", [{"name": "a/../../b", "size": 1, "sha256": HASH}]),
        ("files", [{"name": "README.md", "size": 1, "sha256": HASH}]),
        ("files", [{"name": "a", "size": -1, "sha256": HASH}]),
        ("files", [{"name": "a", "size": 1, "sha256": HASH}] * 2),
        ("surplus", 1),
        ("format", 1),
        ("folder", "../elsewhere/"),
        ("folder", None),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(field: str, value: Any) -> None:
    """Types and ranges are checked, unknown fields are not let through, and no name leaves the folder."""
    document = json.loads(manifest_of(a_release())) | {field: value}
    with pytest.raises(HubError):
        read_manifest(json.dumps(document).encode(), 12)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_not_published(loss: float) -> None:
    """Not measured is None; anything else is finite."""
    with pytest.raises(HubError, match="finite or None"):
        a_release(held_out_loss=loss)


def test_the_card_tells_people_what_the_manifest_tells_programs() -> None:
    """Run, epoch, samples, participants, loss, hash, files and how to load this very epoch."""
    text = card(a_release(), "org/nano")
    assert text.startswith("---\nlibrary_name: transformers\n")
    for fact in ("nano-0123456789ab", "epoch 12", "512", "uids 3, 200", "2.5000 nats", HASH, "config.json"):
        assert fact in text
    assert 'from_pretrained("org/nano", revision="12")' in text


def test_the_card_does_not_invent_a_loss() -> None:
    """What was not measured is said to be so."""
    assert "| held-out loss | not measured |" in card(a_release(held_out_loss=None))


def test_a_secret_is_not_shown() -> None:
    """Not by repr, str or format, in a dataclass, or by being written away."""
    holder = dataclasses.make_dataclass("Holder", ["token"])(Secret("hf_value"))
    secret = holder.token
    assert "hf_value" not in f"{secret} {secret!r} {holder!r} {[secret]}"
    assert secret.scrub("denied: hf_value!") == "denied: ***!"
    assert secret.reveal() == "hf_value"
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            write(secret)


@pytest.mark.parametrize("value", ["", "hf_x\n", "hf x", "hf_é"])
def test_a_secret_that_was_copied_badly_is_refused_without_showing_it(value: str) -> None:
    """The usual mistake is a line end; the message must not repeat the value."""
    with pytest.raises(ConfigurationError) as caught:
        require_token(Secret(value))
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "/tmp/x", "dir://relative", "dir://", "hf://name", "hf://a/b/c", "hf://a/../b", "s3://B", "HF://a/b"]
)
def test_an_unknown_url_is_refused_with_the_remedy(url: str) -> None:
    """The message shows the forms that are known."""
    with pytest.raises(ConfigurationError, match=r"dir:///absolute/path .* hf://organisation/name"):
        HubConfig(url=url)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tries": 0},
        {"first_delay": 0.0},
        {"idle_timeout": 0.0},
        {"endpoint": "huggingface.co"},
        {"keep_last": 1},
        {"part_bytes": 1 << 20},
        {"public_url": "models.example.com"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    """At once, not at the first publication."""
    with pytest.raises(ConfigurationError):
        HubConfig(url="hf://org/name", **wrong)


def test_the_url_chooses_the_hub(tmp_path: Path, library: None) -> None:
    """Building one creates nothing on disk and asks nobody."""
    build = {"token": None, "telemetry": Telemetry(), "clock": SystemClock()}
    assert isinstance(build_hub(HubConfig(url=f"dir://{tmp_path}/hub"), **build), DirectoryHub)
    assert isinstance(build_hub(HubConfig(url="hf://org/name"), **build), HuggingFaceHub)
    assert isinstance(build_hub(HubConfig(url="s3://bucket/a/b"), **build), S3Hub)
    assert list(tmp_path.iterdir()) == []
