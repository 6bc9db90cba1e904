"""Neurons that come late to a running subnet: where they get the state from, and that they take part from then on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from distributed_training.localnet.processes import Command
from tests.integration.subnet import TINY, Subnet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def slower(folder: Path) -> Path:
    """The tiny run with epochs of 10 blocks: long enough for a start of a process."""
    folder.mkdir()
    path = folder / "run.toml"
    path.write_text(TINY.read_text().replace("target_samples = 64", "target_samples = 100000"))
    return path


def without_hub(command: Command) -> Command:
    """The same neuron, whose hub has nothing and takes nothing."""
    arguments = list(command.arguments)
    arguments[arguments.index("--hub.url") + 1] = "dir:///proc/no-hub"
    return dataclasses.replace(command, arguments=arguments)


def refusing(command: Command) -> Command:
    """The same neuron, which serves its state to nobody."""
    return dataclasses.replace(command, arguments=[*command.arguments, "--states.readers", "0"])


def told(subnet: Subnet, name: str, kind: str) -> list[dict[str, Any]]:
    path = subnet.commands[name].events
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in records if record["kind"] == kind]


def rounds(subnet: Subnet, name: str) -> list[int]:
    """The epochs that a neuron has ended in a round."""
    return [record["epoch"] for record in told(subnet, name, "RoundFinished") if record["completed"]]


def takes_part(subnet: Subnet, name: str) -> dict[str, Any]:
    """Wait until a neuron that was started has ended an epoch with the others; how it caught up.

    It may have come too late for the epoch it got the state of, but then it is in the next one.
    """
    subnet.wait(f"{name} in a round", lambda: bool(rounds(subnet, name)), 90)
    first = rounds(subnet, name)[0]
    received = [record for record in told(subnet, name, "CaughtUp") if record["epoch"] <= first]
    assert received, "it was never behind"
    assert first - received[0]["epoch"] <= 1, (first, received)
    assert all(len(hashes) == 1 for hashes in subnet.story.states.values()), subnet.state()
    return received[0]


def test_with_the_hub_down_they_get_the_state_from_several_peers(tmp_path: Path) -> None:
    """A validator and a miner, for the first time; then the miner again, after a crash, from its own checkpoint."""
    with Subnet(tmp_path / "net", miners=3, validators=2, run=slower(tmp_path / "run")) as subnet:
        subnet.start("validator-1", "miner-1", "miner-2")
        subnet.wait_for_epoch(1, "validator-1", "miner-1", "miner-2", seconds=120)
        subnet.start("validator-2", "miner-3", instead=without_hub)
        validator, miner = takes_part(subnet, "validator-2"), takes_part(subnet, "miner-3")
        assert (validator["source"], miner["source"]) == ("peers", "peers")
        assert miner["bytes"] == sum(miner["parts"].values()) == validator["bytes"] > 0
        assert set(validator["parts"]) <= {f"peer:{subnet.network.layout.uids[name]}" for name in subnet.commands}

        subnet.kill("miner-3")
        before = len(rounds(subnet, "miner-3"))
        subnet.start("miner-3", instead=without_hub)
        subnet.wait("miner-3 again", lambda: len(rounds(subnet, "miner-3")) > before, 90)
        assert "checkpoint" in [record["source"] for record in told(subnet, "miner-3", "CaughtUp")]
        assert not subnet.died(), subnet.state()
        assert not [fault for fault in subnet.story.faults if "not published" not in fault], subnet.state()


def test_with_all_peers_refusing_they_get_the_state_from_the_hub(tmp_path: Path) -> None:
    """Model and optimiser state, verified; the refusals are told. The same once its own checkpoint is damaged."""
    with Subnet(tmp_path / "net", miners=3, validators=1, run=slower(tmp_path / "run")) as subnet:
        subnet.start("validator-1", "miner-1", "miner-2", instead=refusing)
        subnet.wait_for_epoch(1, "validator-1", "miner-1", "miner-2", seconds=120)
        subnet.start("miner-3")
        assert takes_part(subnet, "miner-3")["source"] == "hub"
        reasons = {record["source"]: record["reason"] for record in told(subnet, "miner-3", "CatchUpFailed")}
        assert reasons["peer:1"] == "it does not serve this state: busy"

        subnet.kill("miner-3")
        before = len(rounds(subnet, "miner-3"))
        _damage(subnet.commands["miner-3"].folder / "checkpoint")
        subnet.start("miner-3")
        subnet.wait("miner-3 again", lambda: len(rounds(subnet, "miner-3")) > before, 90)
        assert "checkpoint" in [record["source"] for record in told(subnet, "miner-3", "CatchUpFailed")]
        assert [record["source"] for record in told(subnet, "miner-3", "CaughtUp")][-1] == "hub"
        assert not subnet.died(), subnet.state()
        assert not subnet.story.faults, subnet.state()


def _damage(checkpoint: Path) -> None:
    """Tip over a bit of each state in a checkpoint."""
    for path in checkpoint.glob("state-*/model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
