"""What is paid where nobody cheats, what holds where a fifth does, and what Yuma makes of the validators' weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.adversaries.consensus import Plan
from tests.adversaries.consensus import simulate as simulate_chain
from tests.adversaries.subnet.subnet import Scenario, Story, simulate
from tests.adversaries.zoo import InEngine

BYZANTINE = ("sign-flip", "inflation", "spike", "nan", "colluding-copies", "colluding-copies")


def cosine(story: Story, one: int = 1, other: int = 2) -> float:
    """Between the last weights of two validators."""
    first, second = story.weights[one], story.weights[other]
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.timeout(300)
def test_two_validators_agree_after_ten_epochs() -> None:
    """Their draws are independent; their weights point the same way: 16 miners at speeds over a factor of four."""
    scenario = Scenario(miners=16, epochs=10, changes={"scoring": {"held_epochs": 0}})
    speeds = dict(zip(scenario.miner_uids, np.geomspace(0.5, 2, 16).tolist(), strict=True))
    assert cosine(simulate(dataclasses.replace(scenario, speeds=speeds))) >= 0.99


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_reward_follows_useful_samples() -> None:
    """64 miners, speeds over a factor of 16: the chain's pay is in the order of the samples that went into averages.

    Paid at once: of 80 epochs each miner is seen in about 20, so that most of what is held back would still be held.
    """
    scenario = Scenario(miners=64, epochs=80, changes={"scoring": {"held_epochs": 0}})
    order = np.random.default_rng(0).permutation(64)
    speeds = dict(zip(scenario.miner_uids, np.geomspace(0.25, 4, 64)[order].tolist(), strict=True))
    story = simulate(dataclasses.replace(scenario, speeds=speeds))
    pay = [story.pay(uid) for uid in scenario.miner_uids]
    samples = [story.samples.get(uid, 0) for uid in scenario.miner_uids]  # some are too slow for one micro-batch
    assert spearmanr(samples, pay).statistic >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fifth_of_byzantine_miners_costs_little() -> None:
    """Held-out loss in the end within 2 % of the honest run's, by the rule of the reduction alone.

    The audits are switched off, so that nobody is shut out for what it sends.
    """
    off = {"audit": {"share": 1e-9, "alignment": 1e-9, "inflation": 1e9}, "averaging": {"reduction": "clip"}}
    scenario = Scenario(miners=30, epochs=80, changes=off)
    uids = scenario.miner_uids[-len(BYZANTINE) :]
    cheats = {uid: InEngine(name) for uid, name in zip(uids, BYZANTINE, strict=True)}
    honest, mixed = simulate(scenario), simulate(dataclasses.replace(scenario, behaviours=cheats))
    assert mixed.final_loss <= 1.02 * honest.final_loss


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_yuma_pays_work_and_not_copies(tmp_path: Path) -> None:
    """256 uids that come and go, 8 validators: pay in proportion to work; a copier that sees weights three tempos late,
    and a validator that fell silent, have less of the dividends than every honest one.
    """
    result = simulate_chain(tmp_path, Plan(lag=3, churn=16, tempos=36, measured=14))
    assert result.correlation >= 0.99
    assert result.error <= 0.02
    assert result.copier < result.honest.min() - 0.01
    assert result.silent < 0.6
