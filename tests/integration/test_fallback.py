"""A subnet whose validators die: the miners go on by themselves, and a validator that comes back follows and leads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.subnet import Subnet, failed_audits

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MINERS = ("miner-1", "miner-2", "miner-3")


def at_one_state(subnet: Subnet) -> bool:
    """One state hash at every epoch."""
    return all(len(hashes) == 1 for hashes in subnet.story.states.values())


def epoch_of(subnet: Subnet, name: str) -> int:
    subnet.look()
    return subnet.story.neurons[name].epoch


def test_miners_go_on_without_validators_and_one_that_comes_back_leads_again(tmp_path: Path) -> None:
    """Two more epochs with one state hash; a validator started then catches up from the miners and ends the next."""
    with Subnet(tmp_path / "net", miners=3, validators=2) as subnet:
        subnet.start()
        subnet.wait_for_epoch(2)
        for name in ("validator-1", "validator-2"):
            subnet.kill(name)
        left = max(epoch_of(subnet, name) for name in MINERS)
        subnet.wait_for_epoch(left + 2, *MINERS, seconds=90)
        assert subnet.story.epochs <= left + 1, "a validator led meanwhile"

        subnet.start("validator-1")
        subnet.wait_for_epoch(left + 2, "validator-1", seconds=60)
        back = epoch_of(subnet, "validator-1")
        subnet.wait("validator-1 to lead", lambda: max(subnet.story.completed) >= back, 60)
        subnet.wait_for_epoch(back + 1, "validator-1", *MINERS)
        assert at_one_state(subnet), subnet.state()
        assert set(subnet.died()) <= {"validator-1", "validator-2"}, subnet.state()
    assert not failed_audits(tmp_path / "net")
