"""All validators but one die: the last one leads and pays alone, and says why to whom asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distributed_training.explain.__main__ import main
from tests.integration.subnet import TINY, Subnet, failed_audits

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_the_last_validator_leads_and_pays_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most one attempt is lost; the miner gets a signed account of what it is paid, and the log bears it out."""
    with Subnet(tmp_path / "net", miners=2, validators=3) as subnet:
        subnet.start()
        subnet.wait_for_epoch(2)
        for name in ("validator-1", "validator-2"):
            subnet.kill(name)
        subnet.look()
        left, failed = [n for n in subnet.commands if n not in ("validator-1", "validator-2")], len(subnet.story.failed)
        subnet.wait_for_epoch(subnet.story.epochs + 3, *left, seconds=120)
        assert len(subnet.story.failed) <= failed + 1, subnet.state()
        assert all(len(hashes) == 1 for hashes in subnet.story.states.values()), subnet.state()

        layout, kept = subnet.network.layout, tmp_path / "reports.jsonl"
        last = layout.uids["validator-3"]
        subnet.wait("the last one's weights", lambda: last in subnet.story.weights_set, 60)
        chain = ["--subtensor.network", subnet.network.chain_url, "--netuid", "1", "--run", str(TINY)]
        wallet = ["--wallet.name", "miner-1", "--wallet.path", str(subnet.network.folder / "wallets")]
        assert main(["--mine", *chain, *wallet, "--epochs", "16", "--save", str(kept), "--json"]) == 0
        judged = {one["validator"]: one for one in json.loads(capsys.readouterr().out)["judged"]}
        assert judged[last]["share"] > 0
        assert len(judged[last]["reasons"]) >= 3
        assert all(judged[layout.uids[name]]["silent"] for name in ("validator-1", "validator-2"))
        assert not subnet.died(), subnet.state()
    assert not failed_audits(tmp_path / "net")
    assert main(["--evidence", str(kept)]) == 0
    assert main(["--replay", str(subnet.commands["validator-3"].events)]) == 0
