"""The text that trials are run on: the one that the contest pins, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distributed_training.arena.contest.bench import open_bench
from distributed_training.arena.contest.spec import load_contest
from template.errors import ConfigurationError
from tests.arena.contest.material import contest, trusted
from tests.arena.small import write_text

ROOT = Path(__file__).parents[3]
CONTESTS = sorted((ROOT / "runs" / "contests").glob("*.toml"))


@pytest.mark.parametrize("path", CONTESTS, ids=lambda path: path.stem)
def test_the_project_s_contests_pin_the_text_that_comes_with_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all validators train on the same bytes, and each can run another's records again."""
    monkeypatch.chdir(ROOT)
    spec = load_contest(path)
    assert open_bench(spec, tmp_path, trusted).corpus.fingerprint == spec.trial.corpus


def test_another_text_is_refused(tmp_path: Path) -> None:
    """By one letter; both fingerprints are named, and nothing is run. Without a pin what is there counts."""
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")
    (tmp_path / "text" / "long.txt").write_text((tmp_path / "text" / "a.txt").read_text() * 70)
    spec = contest(tmp_path)
    found = open_bench(spec, tmp_path, trusted).corpus.fingerprint
    pinned = dataclasses.replace(spec, trial=dataclasses.replace(spec.trial, corpus=found))
    assert open_bench(pinned, tmp_path, trusted).corpus.fingerprint == found
    (tmp_path / "text" / "a.txt").write_text((tmp_path / "text" / "a.txt").read_text()[:-1] + "x")
    with pytest.raises(ConfigurationError, match=f"the contest's is {found}"):
        open_bench(pinned, tmp_path, trusted)
