"""The run spec: what is accepted, what is refused with which remedy, and the run id."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.run import ReplaySpec, RunSpec, load_run
from template.errors import ConfigurationError

ROOT = Path(__file__).parent.parent
NANO = ROOT / "runs" / "nano.toml"
TEXT = NANO.read_text()


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """nano.toml with one piece of text replaced."""
    assert TEXT.count(old) == 1, old
    path = tmp_path / "changed.toml"
    path.write_text(TEXT.replace(old, new))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_run_file_loads(path: Path) -> None:
    """What the repository ships can be run; the file is named after the run."""
    assert load_run(path).name == path.stem


def test_values_are_those_of_the_file() -> None:
    """Numbers arrive as written; a whole number is a fine float."""
    run, table = load_run(NANO), tomllib.loads(TEXT)
    unsaid = {"path": "", "configuration": "", "split": "train", "revision": "", "column": "text", "fingerprint": ""}
    audit = {"calibration": "", "replay": None, "improvement": None, **table["audit"]}
    said = {**table, "data": {**unsaid, **table["data"]}, "audit": audit, "hyperparameters": {}}
    assert dataclasses.asdict(run) == said
    assert type(run.averaging.connect_seconds) is float


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 1\n", "sed = 1\n", r"unknown key 'sed'; known: .*seed"),
        ("seed = 1\n", "", r"missing key 'seed'"),
        ("seed = 1\n", "seed = '1'\n", r"'seed' must be of type int; found '1'"),
        ("seed = 1\n", "seed = true\n", r"'seed' must be of type int; found True"),
        ('name = "nano"', 'name = "Nano"', r"name must be 1-64 of a-z, 0-9 and '-'"),
        ('name = "nano"', 'name = ""', r"name must be"),
        (
            'precision = "float32"',
            'precision = "float8"',
            r"'precision' must be one of float32, bfloat16; found 'float8'",
        ),
        ("clip_norm = 1.0", "clip_norm = 0.0", r"optimizer\.clip_norm must be positive"),
        ("clip_norm = 1.0", "clip_nrom = 1.0", r"unknown key 'optimizer\.clip_nrom'"),
        ("beta2 = 0.95", "beta2 = 1.0", r"optimizer\.beta2 must lie in \[0, 1\)"),
        ("warmup_epochs = 2\n", "warmup_epochs = 200\n", r"warmup_epochs must be smaller than optimizer\.decay_epochs"),
        ("learning_rate = 0.004", "learning_rate = 0", r"optimizer\.learning_rate must be positive"),
        ("pages_per_epoch = 128", "pages_per_epoch = 127", r"must be a multiple of data\.pages_per_micro_batch"),
        ('source = "stdlib"', 'source = "text"', r"data\.path is needed for the source 'text'"),
        ("held_out_pages = 64", "held_out_pages = -1", r"data\.held_out_pages must not be negative"),
        ("quorum = 0.67", "quorum = 0.5", r"averaging\.quorum .* less than half lets two groups commit"),
        ('codec = "none"', 'codec = "int4"', r"averaging\.codec: unknown codec 'int4'; known: none, fp16"),
        ('codec = "none"', 'codec = "topk32-fp16"', r"averaging\.codec: .*for example 'topk32-fp16\+int8-block256'"),
        (
            "error_feedback = false",
            "error_feedback = true",
            r"error_feedback must be false: .* loses nothing",
        ),
        ("error_feedback = false\n", "", r"missing key 'averaging\.error_feedback'"),
        ("exchange_seconds = 15", "exchange_seconds = 0", r"averaging\.exchange_seconds must be positive"),
        ("answer_seconds = 5", "answer_seconds = 0", r"averaging\.answer_seconds must be positive"),
        ("least_seconds = 3 ", "least_seconds = 5.5 ", r"averaging\.least_seconds must not exceed connect_seconds"),
        ("deadline_spread = 4", "deadline_spread = 0", r"averaging\.deadline_spread must be positive"),
        ('reduction = "clip"', 'reduction = "median"', r"averaging\.reduction: unknown .* known: mean, clip"),
        ("validator_share = 1.0", "validator_share = 1.1", r"averaging\.validator_share must lie in \[0, 1\]"),
        ("coordinates = 64", "coordinates = 1025", r"audit\.coordinates must lie between 1 and 1024"),
        ("threshold = 0.9", "threshold = 0.0", r"audit\.threshold must lie in \(0, 1\]"),
        ("ema = 0.2", "ema = 0.0", r"scoring\.ema must lie in \(0, 1\]"),
        ("bandwidth_share = 0.2", "bandwidth_share = 1.1", r"scoring\.bandwidth_share must lie in \[0, 1\]"),
        ("reference_rate = 1e6", "reference_rate = 0", r"scoring\.reference_rate must be positive"),
        ("fallback_blocks = 100 ", "fallback_blocks = 49 ", r"epoch\.fallback_blocks must be 0 \(off\) or at least 50"),
        ("fallback_blocks = 100 ", "fallback_blocks = -1 ", r"epoch\.fallback_blocks must be 0 \(off\) or at least 50"),
        ("attempts = 3", "attempts = 0", r"epoch\.attempts must be at least 1"),
        ("max_weight = 512 ", "max_weight = 0 ", r"averaging\.max_weight must be positive"),
        ("miners_per_epoch = 16", "miners_per_epoch = 0", r"audit\.miners_per_epoch must be at least 1"),
        ("min_miners = 1", "min_miners = 0", r"epoch\.min_miners must be at least 1"),
        ("[epoch]", "[model.epoch]", r"unknown key 'model\.epoch'"),
        ("[data]", "[dta]", r"unknown key 'dta'"),
        (
            "[model.config]\nn_layer = 2\nn_head = 4\nn_embd = 128\ninitializer_range = 0.06 ",
            "config = 3 ",
            r"'model\.config' must be a section",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_the_remedy(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The message names the file and the key; nothing is filled in."""
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    """A mistyped name shows which run files there are."""
    with pytest.raises(ConfigurationError, match=r"no run file at .*nanno\.toml; run files there: .*nano\.toml"):
        load_run(ROOT / "runs" / "nanno.toml")
    with pytest.raises(ConfigurationError, match="none in that folder"):
        load_run(tmp_path / "nano.toml")


def test_what_is_not_toml_is_refused(tmp_path: Path) -> None:
    """Broken text, bytes and folders are all one kind of error."""
    (tmp_path / "text.toml").write_text("name = ")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "text.toml", tmp_path / "bytes.toml", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read as TOML"):
            load_run(path)


def with_number(run: RunSpec, section: str, field: str, factor: float) -> RunSpec:
    inner = getattr(run, section)
    return dataclasses.replace(run, **{section: dataclasses.replace(inner, **{field: getattr(inner, field) * factor})})


@given(st.sampled_from(["learning_rate", "weight_decay", "epsilon"]), st.floats(1.01, 2.0))
def test_any_changed_number_changes_the_run_id(field: str, factor: float) -> None:
    """Two neurons with different specs never share a run."""
    run = load_run(NANO)
    assert with_number(run, "optimizer", field, factor).run_id != run.run_id


def test_every_section_is_part_of_the_run_id() -> None:
    """The hash covers the whole spec, to the last section."""
    run = load_run(NANO)
    assert dataclasses.replace(run, hyperparameters={"outer_momentum": 0.5}).run_id != run.run_id
    ids = {run.run_id, dataclasses.replace(run, seed=2).run_id, dataclasses.replace(run, strategy="diloco").run_id}
    for section, field in [("epoch", "max_blocks"), ("averaging", "commit_seconds"), ("scoring", "penalty_epochs")]:
        ids.add(with_number(run, section, field, 2).run_id)
    ids.add(dataclasses.replace(run, model=dataclasses.replace(run.model, config={"n_layer": 3})).run_id)
    assert len(ids) == 7


def test_the_run_id_is_the_same_in_every_process() -> None:
    """No seed of hashing, order of keys or layout of the file enters it."""
    code = f"from distributed_training.run import load_run; print(load_run({str(NANO)!r}).run_id)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == load_run(NANO).run_id


def test_layout_of_the_file_does_not_matter(tmp_path: Path) -> None:
    """Comments and the order of keys are not part of the run."""
    path = changed(tmp_path, "warmup_epochs = 2\ndecay_epochs = 200\n", "decay_epochs = 200 # x\n\nwarmup_epochs = 2\n")
    assert load_run(path).run_id == load_run(NANO).run_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_tolerance", 0.0),
        ("gradient_tolerance", -1.0),
        ("share", 0.0),
        ("share", 1.1),
        ("overhead", 0.0),
        ("alignment", 0.0),
        ("alignment", 0.6),
        ("inflation", 1.0),
        ("calibration", "abc"),
    ],
)
def test_audits_that_could_not_work_are_refused(name: str, value: object) -> None:
    """Measured values are no exception."""
    with pytest.raises(ConfigurationError, match=rf"audit\.{name}"):
        dataclasses.replace(load_run(NANO).audit, **{name: value})  # type: ignore[arg-type]


def test_specs_are_checked_however_they_are_made() -> None:
    """A dataclass made in code is held to the same rules as a file."""
    with pytest.raises(ConfigurationError, match=r"data\.page_size"):
        dataclasses.replace(load_run(NANO).data, page_size=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "main"}, r"data.revision must be the full hash of a commit"),
        ({"revision": ""}, r"data.revision must be the full hash of a commit"),
        ({"path": "fineweb"}, r"data.path must be a dataset repository: organisation/name"),
        ({"split": ""}, r"data.split and data.column must not be empty"),
        ({"fingerprint": "abc"}, r"data.fingerprint must be 64 hex digits"),
        ({"source": "parquet"}, r"data.configuration is for the source 'huggingface' only"),
    ],
)
def test_datasets_are_pinned(changes: dict[str, str], message: str) -> None:
    """What could be another text tomorrow is refused today."""
    data = load_run(ROOT / "runs" / "gpt2-fineweb.toml").data
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(data, **changes)


IMPROVEMENT = "[audit.improvement]\nbatches = 8\nconfidence = 0.99\n"
SECTION = '[strategy]\nname = "diloco"\nouter_learning_rate = 1\n\n[data]\n'


def test_a_strategy_may_have_a_section(tmp_path: Path) -> None:
    """Its name, and whatever hyper-parameters it has, as written."""
    path = tmp_path / "run.toml"
    path.write_text(TEXT.replace('strategy = "gradient-averaging"\n', "").replace("[data]\n", SECTION))
    run = load_run(path)
    assert (run.strategy, run.hyperparameters) == ("diloco", {"outer_learning_rate": 1})
    replay = "[audit.replay]\nstretch = 8\nshare = 0.5\ntolerance = 0.1\n\n[scoring]\n"
    path.write_text(path.read_text().replace("[scoring]\n", replay))
    assert load_run(path).audit.replay == ReplaySpec(stretch=8, share=0.5, tolerance=0.1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "diloco"\n', "", r"missing key 'strategy\.name'"),
        ("outer_learning_rate = 1", "outer_learning_rate = [1]", r"'strategy\.outer_learning_rate' must be a number"),
        ("outer_learning_rate = 1", "outer_learning_rate = true", r"must be a number or text; found True"),
        ('name = "diloco"', "name = 3", r"'strategy' must be of type str; found 3"),
        ("[strategy]\n", "[hyperparameters]\na = 1\n[strategy]\n", r"they stand in \[strategy\], beside its name"),
        ("[scoring]\n", "[audit.replay]\nstretch = 0\nshare = 1\ntolerance = 0.1\n[scoring]\n", r"at least 1 inner"),
        ("[scoring]\n", "[audit.replay]\nstretch = 1\nshare = 0\ntolerance = 0.1\n[scoring]\n", r"share must lie in"),
        ("[scoring]\n", "[audit.replay]\nstretch = 1\nshare = 1\ntolerance = 1\n[scoring]\n", r"tolerance must lie"),
        ("[scoring]\n", IMPROVEMENT + "[scoring]\n", r"\[audit\.improvement\] needs \[audit\.replay\]"),
        ("[scoring]\n", IMPROVEMENT.replace("8", "7") + "[scoring]\n", r"batches must be at least 8"),
        ("[scoring]\n", IMPROVEMENT.replace("0.99", "0.9") + "[scoring]\n", r"confidence must lie between"),
        ("[scoring]\n", "[audit.replay]\nstretch = 1\n[scoring]\n", r"missing key 'audit\.replay\.share'"),
    ],
)
def test_impossible_strategies_and_replays_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Each with its dotted name."""
    path = tmp_path / "run.toml"
    text = TEXT.replace('strategy = "gradient-averaging"\n', "").replace("[data]\n", SECTION)
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=message):
        load_run(path)


def test_what_a_spec_leaves_out_does_not_change_its_run_id() -> None:
    """Runs that were begun before a section could be said keep their id, and with it their checkpoints."""
    run = load_run(NANO)
    table = dataclasses.asdict(run)
    del table["hyperparameters"], table["audit"]["replay"], table["audit"]["improvement"]
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    assert run.run_id == f"nano-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
