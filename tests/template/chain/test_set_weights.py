"""Setting weights: every answer of the chain is an outcome."""

from __future__ import annotations

from typing import Any

import pytest

from template.chain.metagraph import read_weights
from template.chain.weights import WeightsStatus, set_weights


@pytest.fixture
def permitted(chain: Any) -> Any:
    """The chain after its first epoch: the validator has a permit and is not rate-limited."""
    chain.advance(25)
    return chain


async def attempt(chain: Any, wallet: Any, weights: dict[int, float], **options: Any) -> Any:
    return await set_weights(chain.client, wallet, 1, weights, **({"version_key": 0} | options))


@pytest.mark.parametrize("mechid", [0, 1])
async def test_set_and_read_back(permitted: Any, wallet: Any, mechid: int) -> None:
    """Both mechanisms take weights, and the outcome says in which block."""
    outcome = await attempt(permitted, wallet("v"), {2: 0.75, 3: 0.25}, mechid=mechid)
    assert (outcome.status, outcome.block) == (WeightsStatus.SET, await permitted.client.block())
    rows = await read_weights(permitted.client, 1, mechid)
    assert rows == {1: pytest.approx({2: 0.75, 3: 0.25}, abs=1e-4)}


async def test_rate_limited_says_how_long(permitted: Any, wallet: Any) -> None:
    """After the blocks to wait the same attempt succeeds; one block before it does not."""
    await attempt(permitted, wallet("v"), {2: 1.0})
    outcome = await attempt(permitted, wallet("v"), {2: 1.0})
    assert (outcome.status, outcome.blocks_to_wait) == (WeightsStatus.RATE_LIMITED, 5)
    permitted.advance(outcome.blocks_to_wait - 1)
    assert (await attempt(permitted, wallet("v"), {2: 1.0})).blocks_to_wait == 1
    permitted.advance(1)
    assert (await attempt(permitted, wallet("v"), {2: 1.0})).status is WeightsStatus.SET


async def test_mechanisms_are_limited_apart(permitted: Any, wallet: Any) -> None:
    """Setting mechanism 0 does not delay mechanism 1."""
    await attempt(permitted, wallet("v"), {2: 1.0}, mechid=0)
    assert (await attempt(permitted, wallet("v"), {2: 1.0}, mechid=1)).status is WeightsStatus.SET


async def test_no_permit(permitted: Any, wallet: Any) -> None:
    """A refusal at dispatch."""
    outcome = await attempt(permitted, wallet("m1"), {3: 1.0})
    assert (outcome.status, outcome.code) == (WeightsStatus.REFUSED, "not_authorized")
    assert "NeuronNoValidatorPermit" in outcome.message


async def test_not_registered(permitted: Any, wallet: Any) -> None:
    """A refusal before anything is sent."""
    outcome = await attempt(permitted, wallet("nobody"), {2: 1.0})
    assert (outcome.status, outcome.code) == (WeightsStatus.REFUSED, "not_registered")


async def test_old_version(permitted: Any, wallet: Any) -> None:
    """A subnet can demand a version of its validators."""
    permitted.set("weights_version", 7)
    outcome = await attempt(permitted, wallet("v"), {2: 1.0}, version_key=6)
    assert (outcome.status, outcome.code) == (WeightsStatus.REFUSED, "invalid_argument")
    assert (await attempt(permitted, wallet("v"), {2: 1.0}, version_key=7)).status is WeightsStatus.SET


async def test_commit_reveal_is_committed(permitted: Any, wallet: Any) -> None:
    """With commit-reveal on the weights are on the chain, but sealed."""
    permitted.set("commit_reveal_weights_enabled", True)
    outcome = await attempt(permitted, wallet("v"), {2: 1.0, 3: 1.0})
    assert outcome.status is WeightsStatus.COMMITTED
    assert await read_weights(permitted.client, 1) == {}
    commits = await permitted.client.read("timelocked_weight_commits", netuid=1)
    assert [c["hotkey"] for entry in commits.values() for c in entry] == [wallet("v").keys.hotkey]


async def test_many_uids_survive_rounding(permitted: Any, wallet: Any) -> None:
    """A row with a tiny share is still recognised as the one that was set."""
    outcome = await attempt(permitted, wallet("v"), {0: 0.4, 2: 0.6 - 1e-6, 3: 1e-6})
    assert outcome.status is WeightsStatus.SET
