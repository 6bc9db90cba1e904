"""Who wins: gain with confidence, the gate, copies, ties, and that nobody else's entry changes a score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from distributed_training.arena.contest.interval import interval
from distributed_training.arena.contest.judgement import (
    Entry,
    Known,
    Status,
    Throne,
    beats,
    gain,
    judge,
    same_behaviour,
    strongest,
)
from distributed_training.arena.trial import Trial
from template.errors import ContestError
from tests.arena.contest.material import BUDGET, REFERENCES, RULES, SEEDS, entry, trial, trials

NOISE = Path(__file__).parents[2] / "fixtures" / "arena_noise.json"
REFERENCE = Known("diloco", entry("x", 1, words=1).fingerprint)
CHAMPION = Throne(name="king", trials=trials("king", 1.9), hotkey="king", source="source-of-king")


def status_of(*entries: Entry, champion: Throne | None = CHAMPION, known: tuple[Known, ...] = ()) -> dict[str, Status]:
    found = judge(entries, champion, REFERENCES, known, RULES, BUDGET)
    return {standing.hotkey: standing.status for standing in found.standings}


def test_a_clear_gain_dethrones() -> None:
    """Two percent on every seed; the gains over all references are told, too."""
    found = judge([entry("a", 1.86)], CHAMPION, REFERENCES, (), RULES, BUDGET)
    (standing,) = found.standings
    assert (found.throne.hotkey, found.throne.source) == ("a", "source-of-a")
    assert standing.status is Status.CHAMPION
    assert standing.over_throne is not None
    assert standing.over_throne.mean == pytest.approx(0.04 / 1.9)
    assert standing.gains["ddp"].mean == pytest.approx(0.07)
    assert set(standing.gains) == set(REFERENCES)


@pytest.mark.parametrize("loss", [1.9, 1.895, 2.0])
def test_less_than_epsilon_does_not(loss: float) -> None:
    """Half a percent is asked for, however sure the gain is."""
    found = judge([entry("a", loss)], CHAMPION, REFERENCES, (), RULES, BUDGET)
    assert found.throne == CHAMPION
    assert found.standings[0].status is Status.BEATEN


def test_an_uncertain_gain_does_not() -> None:
    """Three percent in the mean, but not on every seed."""
    unsure = dataclasses.replace(entry("a", 1.9), trials=trials("a", 1.84, (0.06, -0.05, -0.04, 0.03)))
    found = judge([unsure], CHAMPION, REFERENCES, (), RULES, BUDGET)
    over = found.standings[0].over_throne
    assert over is not None
    assert over.mean > RULES.epsilon
    assert over.low < 0
    assert found.standings[0].status is Status.BEATEN


def test_without_a_champion_the_best_reference_is_to_be_beaten() -> None:
    """DDP here; nobody is paid until somebody beats it."""
    assert strongest(REFERENCES, BUDGET).name == "ddp"
    assert judge([], None, REFERENCES, (), RULES, BUDGET).throne.hotkey is None
    assert status_of(entry("a", 1.999), entry("b", 1.95), champion=None) == {"a": Status.BEATEN, "b": Status.CHAMPION}


def test_training_apart_is_never_to_be_beaten() -> None:
    """It communicates nothing, however good it is."""
    assert strongest({**REFERENCES, "apart": trials("apart", 1.0, sent=0)}, BUDGET).name == "ddp"


def test_the_first_commitment_wins_ties() -> None:
    """Of two that beat the champion alike, and of one that is better by less than epsilon."""
    late, early = entry("a", 1.80, block=7), entry("b", 1.801, block=6)
    assert status_of(late, early) == {"b": Status.CHAMPION, "a": Status.BEATEN}
    better = entry("c", 1.70, block=8)
    assert status_of(late, early, better) == {"b": Status.SURPASSED, "a": Status.BEATEN, "c": Status.CHAMPION}


def test_who_sends_nothing_cannot_win() -> None:
    """However low its loss is; one silent node is enough."""
    silent = dataclasses.replace(entry("a", 1.5), trials=trials("a", 1.5, sent=0))
    assert status_of(silent) == {"a": Status.NO_COMMUNICATION}
    one = {s: dataclasses.replace(t, sent=(5, 5, 0, 5)) for s, t in trials("a", 1.5).items()}
    assert status_of(dataclasses.replace(silent, trials=one)) == {"a": Status.NO_COMMUNICATION}


def test_who_does_not_train_cannot_win() -> None:
    """Within the budget it leads, as all others are slow; of what DDP learns in the same steps it has learnt little."""
    slow = {name: {seed: stretched(t) for seed, t in found.items()} for name, found in REFERENCES.items()}
    idle = entry("a", 4.0)
    found = judge([idle], None, slow, (), RULES, BUDGET)
    assert found.standings[0].gains["ddp"].low > RULES.epsilon
    assert found.standings[0].status is Status.NO_TRAINING
    assert found.throne.hotkey is None


def stretched(trial: Trial) -> Trial:
    """The same, a billion times as slow."""
    marks = (dataclasses.replace(m, seconds={link: 1e9 * s for link, s in m.seconds.items()}) for m in trial.curve)
    return dataclasses.replace(trial, curve=tuple(marks))


def test_who_gains_nothing_by_communicating_cannot_win() -> None:
    """A byte a step, and no better than nodes apart."""
    assert status_of(entry("a", 2.55), champion=None) == {"a": Status.NO_GAIN}


def test_without_a_ddp_that_trains_nobody_is_judged() -> None:
    """A contest whose references diverge is an error, not everybody's failure."""
    broken = {**REFERENCES, "ddp": trials("ddp", 6.0)}
    with pytest.raises(ContestError, match="DDP does not train"):
        judge([entry("a", 1.8)], CHAMPION, broken, (), RULES, BUDGET)


def test_copies_earn_nothing() -> None:
    """Of a reference, of an earlier submission, and of one in the same round that was committed before."""
    diloco, king = (
        Known("diloco", entry("x", 1, words=1).fingerprint),
        Known("king", entry("x", 1, words=2).fingerprint),
    )
    copies = entry("a", 1.7, words=1), entry("b", 1.7, words=2)
    assert status_of(*copies, known=(diloco, king)) == {"a": Status.DUPLICATE, "b": Status.DUPLICATE}
    assert status_of(entry("c", 1.8, 5, words=3), entry("d", 1.7, 6, words=3))["d"] is Status.DUPLICATE


def test_a_hotkey_may_submit_its_own_again() -> None:
    """What it beats by then is its own."""
    mine = Known("a", entry("a", 1).fingerprint, hotkey="a")
    assert status_of(entry("a", 1.8), known=(mine,)) == {"a": Status.CHAMPION}


def test_other_code_that_does_the_same_is_a_copy() -> None:
    """Equal parameters to the bit, or curves upon each other with the same bytes."""
    king = Known("king", entry("x", 1, words=1).fingerprint, CHAMPION.trials, "king")
    bits = {s: trial("a", s, t.loss * 0.9, params=t.params_sha256) for s, t in CHAMPION.trials.items()}
    near = {s: trial("a", s, t.loss * (1 + 1e-6)) for s, t in CHAMPION.trials.items()}
    far = {s: trial("a", s, t.loss * 0.9) for s, t in CHAMPION.trials.items()}
    assert [same_behaviour(mine, CHAMPION.trials) for mine in (bits, near, far)] == [True, True, False]
    disguised = dataclasses.replace(entry("a", 1.9), trials=near)
    assert status_of(disguised, known=(king,)) == {"a": Status.DUPLICATE}


def test_a_heap_of_known_code_takes_nothing_from_others() -> None:
    """Somebody commits everything there is, to make copies of all that come later."""
    heap = [entry(hotkey, 1).fingerprint for hotkey in "tabcde"]
    known = Known("t", sum(heap[1:], start=heap[0]), hotkey="t")
    assert status_of(entry("a", 1.8), known=(known,)) == {"a": Status.CHAMPION}


def test_what_failed_takes_nothing_from_others() -> None:
    """A source that was never run, or did not pass the gate, is no earlier submission."""
    failed = dataclasses.replace(entry("a", 1.8, 1, words=1), trials={}, problem=(Status.FAILED, "it broke off"))
    assert status_of(failed, entry("b", 1.8, 2, words=1)) == {"a": Status.FAILED, "b": Status.CHAMPION}


def test_a_hundred_garbage_entries_change_no_other_score() -> None:
    """Whatever they are: bad, silent, broken, copies. Metric, gains, status and throne stay as they were."""
    real = [entry("real-1", 1.88, 50), entry("real-2", 1.80, 51), entry("real-3", 3.0, 52)]
    random = np.random.default_rng(3)
    garbage = []
    for number in range(100):
        made = entry(f"g{number}", float(random.uniform(2.0, 9.0)), int(random.integers(1, 100)))
        match number % 4:
            case 1:
                made = dataclasses.replace(made, trials={}, problem=(Status.FAILED, "it broke off"))
            case 2:
                made = dataclasses.replace(made, trials=trials(made.hotkey, 1.0, sent=0))
            case 3:
                made = dataclasses.replace(made, fingerprint=REFERENCE.fingerprint)
        garbage.append(made)
    alone = judge(real, CHAMPION, REFERENCES, (REFERENCE,), RULES, BUDGET)
    crowd = judge([*garbage, *real], CHAMPION, REFERENCES, (REFERENCE,), RULES, BUDGET)
    assert tuple(s for s in crowd.standings if s.hotkey.startswith("real")) == alone.standings
    assert crowd.throne == alone.throne
    assert len(crowd.standings) == 103


def test_a_copy_of_the_champion_does_not_dethrone_it() -> None:
    """A/A: in less than one of a hundred rounds of measured seed-to-seed noise, even if its seeds were others."""
    losses = np.array(json.loads(NOISE.read_text())["losses"])
    random = np.random.default_rng(5)
    dethroned = 0
    for _ in range(1000):
        king, copy = (random.choice(losses, RULES.replicates, replace=False) for _ in range(2))
        dethroned += beats(interval(list((king - copy) / king), RULES.confidence), RULES)
    assert dethroned < 10
    same = trials("copy", 1.9)
    assert gain(same, CHAMPION.trials, BUDGET, RULES.confidence).mean == 0.0
    assert len(SEEDS) == RULES.replicates
