"""Yuma consensus against vectors from the pallet's own tests, to the integer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from template.chain.local import yuma

VECTORS = json.loads((Path(__file__).parents[3] / "fixtures" / "yuma_vectors.json").read_text())


def inputs_of(vector: dict[str, Any], **changes: Any) -> yuma.Inputs:
    raw = vector["inputs"]
    fields: dict[str, Any] = {
        "stake": np.asarray(raw["stake"], float),
        "weights": np.asarray(raw["weights"], float),
        "present": np.asarray(raw["present"], bool),
        "bonds": np.asarray(raw["bonds"], float),
        "permits": np.asarray(raw["permits"], bool),
        "last_update": np.asarray(raw["last_update"]),
        "registered": np.asarray(raw["registered"]),
        "block": raw["block"],
        "rao": raw["rao"],
    }
    return yuma.Inputs(**(fields | changes))


def parameters_of(vector: dict[str, Any]) -> yuma.Hyperparameters:
    return yuma.Hyperparameters(**vector["inputs"]["params"])


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_vectors(number: int) -> None:
    """Every output of every vector is met exactly."""
    vector = VECTORS[number]
    outcome = yuma.epoch(inputs_of(vector), parameters_of(vector))
    for name, expected in vector["outputs"].items():
        assert np.asarray(getattr(outcome, name)).astype(int).tolist() == expected, name


def test_vectors_cover_both_versions() -> None:
    """The vectors hold v2, v3 and v3 with liquid alpha."""
    kinds = {(v["inputs"]["params"]["yuma3"], v["inputs"]["params"]["liquid_alpha"]) for v in VECTORS}
    assert kinds == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("vector", [VECTORS[0], VECTORS[16]], ids=["v2", "v3"])
def test_pays_no_more_than_the_alpha(vector: dict[str, Any]) -> None:
    """What servers and validators get together never exceeds what there is, and misses it only by rounding."""
    outcome = yuma.epoch(inputs_of(vector, rao=10**12), parameters_of(vector))
    paid = sum(outcome.server_emission) + sum(outcome.validator_emission)
    assert 10**12 - 10**5 < paid <= 10**12


def test_weight_set_before_the_target_registered_is_ignored() -> None:
    """A new hotkey does not inherit the incentive of the uid it replaced."""
    vector = VECTORS[0]
    registered = np.asarray(vector["inputs"]["registered"]).copy()
    registered[7] = 1  # last_update of the validators is 1
    outcome = yuma.epoch(inputs_of(vector, registered=registered), parameters_of(vector))
    assert outcome.incentive[7] == 0
    assert outcome.incentive[6] > 0


def test_commit_older_than_the_target_is_ignored() -> None:
    """With commit-reveal, weights committed before the target registered do not count."""
    vector = VECTORS[0]
    late = inputs_of(vector, commit_block=np.full(8, -5), registered=np.full(8, -2))
    assert yuma.epoch(late, parameters_of(vector)).incentive.sum() == 0


def test_nobody_scored_pays_the_stake() -> None:
    """Without weights the alpha goes to the validators by stake."""
    vector = VECTORS[0]
    outcome = yuma.epoch(inputs_of(vector, present=np.zeros((8, 8), bool)), parameters_of(vector))
    assert outcome.server_emission == (0,) * 8
    assert [round(x / 1e8) for x in outcome.validator_emission] == [1, 2, 3, 4, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("split", "expected"), [(None, [51, 50]), ([65535, 0], [101, 0]), ([13107, 52428], [21, 80]), ([65535], [101, 0])]
)
def test_split(split: list[int] | None, expected: list[int]) -> None:
    """Shares are cut down and mechanism 0 keeps the rounding."""
    assert yuma.split_emission(101, 2, split) == expected
