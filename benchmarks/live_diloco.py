"""DiLoCo against gradient averaging in whole localnets: held-out loss and bytes for the same samples.

    python -m benchmarks.live_diloco [--samples 16384] [--miners 4] [--folder FOLDER] [--output TABLE.md]

Runs scripts/localnet with runs/nano.toml and with runs/nano-diloco.toml, one after the other, for as many epochs as
make up the samples, and reads what their neurons told: samples and bytes at the socket of all rounds that completed
(`RoundFinished`), bytes that miners showed to be audited (`StateShown`; what is expected of them in the long run is
computed, since few epochs have few), and the held-out loss (`HeldOut`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distributed_training.data.build import build_loader
from distributed_training.engine.engine import Engine
from distributed_training.model.chunks import Chunks
from distributed_training.run import RunSpec, load_run
from template.config import HelpRequested, option, parse
from template.console import print_error, print_text
from template.errors import SubnetError

ROOT = Path(__file__).parents[1]
RUNS = ("nano", "nano-diloco")
SHOWN = 3  # states a replay: where the stretch begins and ends, and where the epoch's steps end


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How much is trained, by whom, and where the localnets go."""

    samples: int = option("samples to train in each run", default=16384)
    miners: int = option("miners of each localnet", default=4)
    validators: int = option("validators of each localnet", default=1)
    folder: Path = option("folder for the localnets", default=ROOT / ".live_diloco")
    output: Path | None = option("file for the table; default: print it", default=None)
    keep: bool = option("read what an earlier call left in the folder instead of running", default=False)


@dataclass(frozen=True)
class Measured:
    """One run. Bytes are sent by all members together; `shown` in all, `expected` what audits cost on average."""

    name: str
    rounds: int
    samples: int
    exchanged: int
    shown: int
    expected: float
    first_loss: float
    last_loss: float

    @property
    def per_sample(self) -> float:
        """Bytes of the rounds."""
        return self.exchanged / self.samples

    @property
    def with_audits(self) -> float:
        """Bytes of the rounds, and those of audits as they are expected."""
        return (self.exchanged + self.expected) / self.samples


def train(name: str, config: LiveConfig) -> None:
    """Run one localnet to its end; raises CalledProcessError if it does not end well."""
    epochs = max(1, round(config.samples / load_run(ROOT / "runs" / f"{name}.toml").epoch.target_samples))
    command = [sys.executable, "-m", "distributed_training.localnet", "--run", f"runs/{name}.toml", "--fresh"]
    command += ["--miners", str(config.miners), "--validators", str(config.validators), "--epochs", str(epochs)]
    subprocess.run([*command, "--folder", str(config.folder / name)], cwd=ROOT, check=True)


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """What all neurons of a localnet told."""
    for path in sorted(folder.glob("*/events.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


def measured(name: str, folder: Path) -> Measured:
    """The numbers of a localnet that has ended."""
    spec, told = load_run(ROOT / "runs" / f"{name}.toml"), list(events(folder))
    rounds = [event for event in told if event["kind"] == "RoundFinished" and event["completed"]]
    losses = {event["epoch"]: event["loss"] for event in told if event["kind"] == "HeldOut"}
    last = max(event["epoch"] for event in rounds) + 1
    work = sum(event["samples"] > 0 for event in rounds)  # epochs of miners
    validators = len({event["uid"] for event in rounds if event["samples"] == 0})
    return Measured(
        name=name,
        rounds=len({event["epoch"] for event in rounds}),
        samples=sum(event["samples"] for event in rounds),
        exchanged=sum(event["bytes_sent"] for event in rounds),
        shown=sum(event["bytes"] for event in told if event["kind"] == "StateShown"),
        expected=work * validators * replay_bytes(spec),
        first_loss=losses[0],
        last_loss=losses[last],
    )


def replay_bytes(spec: RunSpec) -> float:
    """Bytes that one validator has one miner show in an epoch, on average."""
    if spec.audit.replay is None:
        return 0.0
    loader = build_loader(spec)
    engine = Engine(spec, loader.tokenizer.vocab_size)
    loader.close()
    return spec.audit.replay.share * SHOWN * Chunks.of(engine.layout, engine.own_vectors).size


def table(found: Mapping[str, Measured], config: LiveConfig) -> str:
    """Markdown."""
    base = found[RUNS[0]]
    head = (
        "| run | samples | rounds | held-out loss | against gradient averaging | bytes a sample, rounds | fewer | "
        "with audits | fewer |\n|---|---|---|---|---|---|---|---|---|"
    )
    rows = [
        f"| {one.name} | {one.samples} | {one.rounds} "
        f"| {one.last_loss:.3f} | {one.last_loss / base.last_loss - 1:+.1%} "
        f"| {one.per_sample:.0f} | {base.per_sample / one.per_sample:.1f}x "
        f"| {one.with_audits:.0f} | {base.with_audits / one.with_audits:.1f}x |"
        for one in found.values()
    ]
    note = (
        f"{config.miners} miners, {config.validators} validator(s), loss {base.first_loss:.3f} at the beginning; bytes "
        "at the socket, sent by all members. Audits: states that miners show for replays, as the run's share expects"
        f"; in this run {found[RUNS[1]].shown} bytes were shown."
    )
    return "\n".join([head, *rows, "", note, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all went well, 1 a localnet did not, 2 bad arguments."""
    try:
        config: LiveConfig = parse({"": LiveConfig}, argv, prog="benchmarks.live_diloco", description=str(__doc__))[""]
        for name in () if config.keep else RUNS:
            train(name, config)
        text = table({name: measured(name, config.folder / name) for name in RUNS}, config)
    except HelpRequested as wanted:
        print_text(str(wanted))
        return 0
    except SubnetError as error:
        print_error(str(error))
        return 2
    except subprocess.CalledProcessError as error:
        print_error(f"a localnet ended with status {error.returncode}")
        return 1
    if config.output is None:
        Console().print(text, highlight=False, soft_wrap=True, markup=False)
    else:
        config.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
