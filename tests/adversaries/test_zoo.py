"""Every behaviour of the zoo in simulated time: it is not paid, and those beside it are.

The whole table, with more miners, epochs and seeds, is `scripts/adversaries`; docs/incentives.md shows it.
"""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from tests.adversaries.measure import Size, measure, scenario_of
from tests.adversaries.report import title
from tests.adversaries.subnet.subnet import Scenario, Story, simulate
from tests.adversaries.zoo import BY_NAME, CASES

HONEST = 8
EPOCHS = 25
TOLERATED = 0.05  # half of these epochs are held back when the others are paid

# Behaviours that do not disturb each other, so that one run shows several of them.
FAKED = ("free-rider", "copycat", "plagiarist", "same-page", "no-backward", "replay", "overclaim", "quantised")
POISONED = ("inflation", "sign-flip", "spike", "garbage", "secretive", "silent")
IN_ROUNDS = ("nan", "withholding", "peer-id-theft", "wrong-size")
REDUCERS = ("lying-reducer", "lying-where-unseen", "hiding-reducer", "false-exhibitor")
GROUPS = {"faked": FAKED, "poisoned": POISONED, "in rounds": IN_ROUNDS, "reducers": REDUCERS}


def together(names: tuple[str, ...]) -> tuple[Scenario, Story]:
    """One miner of each kind beside the honest ones."""
    scenario = Scenario(miners=HONEST + len(names), epochs=EPOCHS)
    cheats = dict(zip(scenario.miner_uids[HONEST:], names, strict=True))
    behaviours = {uid: BY_NAME[name].make((scenario.first_miner,)) for uid, name in cheats.items()}
    scenario = dataclasses.replace(scenario, behaviours=behaviours)
    return scenario, simulate(scenario)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "names", [FAKED, POISONED, IN_ROUNDS, REDUCERS], ids=["faked", "poisoned", "in rounds", "reducers"]
)
def test_cheats_are_not_paid_and_the_others_are(names: tuple[str, ...]) -> None:
    """One of each among eight honest miners, who lose nothing by it."""
    scenario, story = together(names)
    honest = [story.pay(uid) for uid in scenario.miner_uids[:HONEST]]
    each = [story.pay(uid) / story.samples[uid] for uid in scenario.miner_uids[:HONEST]]
    assert story.epochs == EPOCHS
    assert min(each) > 0.8 * statistics.mean(each)
    for uid, name in zip(scenario.miner_uids[HONEST:], names, strict=True):
        assert story.pay(uid) <= TOLERATED * statistics.mean(honest), name


@pytest.mark.timeout(300)
def test_those_who_claim_at_once_what_they_never_trained_do_not_keep_the_epochs_to_themselves() -> None:
    """A third of free-riders: once they were found out, epochs wait for those who train."""
    case = next(case for case in CASES if title(case) == "free-rider 0.330")
    scenario = scenario_of(case, Size(miners=16, validators=2, epochs=EPOCHS), seed=0)
    story = simulate(scenario)
    honest = [story.pay(uid) for uid in scenario.miner_uids if uid not in scenario.behaviours]
    assert min(honest) > 0.5 * statistics.mean(honest) > 0
    assert [story.pay(uid) for uid in scenario.behaviours] == [0] * len(scenario.behaviours)


@pytest.mark.timeout(300)
def test_a_slow_line_is_paid_for_its_samples() -> None:
    """A straggler just inside the deadline works honestly: all that it loses is the share of the pay for bandwidth."""
    measured = measure(BY_NAME["straggler"], Size(miners=HONEST, validators=2, epochs=EPOCHS), seed=0)
    assert measured.pay is not None
    assert 0.7 < measured.pay < 0.95
    assert measured.wronged == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=title)
def test_the_table(case: object) -> None:
    """What docs/incentives.md promises, for one seed."""
    measured = measure(case, Size(miners=16, validators=2, epochs=100), seed=7)  # type: ignore[arg-type]
    assert measured.pay is not None
    assert measured.epochs == 100
    wanted = case.wanted  # type: ignore[attr-defined]
    assert wanted is None or measured.pay <= wanted
    assert measured.wronged <= 1e-3 * measured.judged
