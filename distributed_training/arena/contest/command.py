"""Commands of the contest: `submit` and `reveal` for miners, `ready` and `contest` for validators."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bittensor import Wallet
from rich.console import Console

from distributed_training.arena.contest.bench import Runner, open_bench, require_corpus
from distributed_training.arena.contest.places import place_at
from distributed_training.arena.contest.referee import Referee
from distributed_training.arena.contest.spec import ContestSpec, Phase, Round, load_contest, round_at, round_numbered
from distributed_training.arena.contest.state import StateFile
from distributed_training.arena.contest.submission import (
    Submission,
    check_source,
    new_salt,
    read_reveal,
    revealed,
)
from distributed_training.arena.contest.validator import ContestValidator
from distributed_training.arena.sandbox.backends import Backend, find_backend
from distributed_training.arena.sandbox.limits import Limits
from template.chain.commitments import publish_commitment, read_commitments
from template.chain.connect import connect
from template.chain.neuron_calls import uid_of
from template.chain.wallet import WalletConfig, open_wallet
from template.clock import Clock, SystemClock
from template.config import option
from template.errors import ConfigurationError, SubmissionRefused
from template.files import replace_file
from template.neuron import die_with_parent
from template.telemetry import Telemetry

POLL_SECONDS = 6.0
PARENT = "stop when the process with this id, our parent, ends (Linux)"
PLACE = "where sources are revealed; default: the spec's reveals.place"


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """The chain."""

    network: str = option("finney, test, ws://host:port or local:///path/to/chain.db", default="finney")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """Commit to a source."""

    file: tuple[str, ...] = option("the Python file", positional=True)
    contest: Path = option("the contest spec")
    netuid: int = option("the subnet")
    sealed: Path | None = option("where to keep source and salt until the reveal; default: FILE.sealed", default=None)
    wait: bool = option("wait for a round to open, stay until it has closed, and reveal", default=False)
    place: str | None = option(PLACE, default=None)
    parent: int | None = option(PARENT, default=None)


@dataclass(frozen=True, kw_only=True)
class RevealConfig:
    """Reveal what was committed."""

    file: tuple[str, ...] = option("what submit has kept", positional=True)
    contest: Path = option("the contest spec")
    netuid: int = option("the subnet")
    place: str | None = option(PLACE, default=None)


@dataclass(frozen=True, kw_only=True)
class ReadyConfig:
    """Whether this machine can judge a contest."""

    contest: Path = option("the contest spec")


@dataclass(frozen=True, kw_only=True)
class ContestConfig:
    """Judge and pay."""

    contest: Path = option("the contest spec")
    netuid: int = option("the subnet")
    state: Path = option("folder for state, sources, records and results")
    rounds: int | None = option("leave after so many rounds; default: never", default=None)
    place: str | None = option(PLACE, default=None)
    parent: int | None = option(PARENT, default=None)


async def submit(
    config: SubmitConfig, chain: ChainConfig, wallet_config: WalletConfig, console: Console, clock: Clock | None = None
) -> None:
    """Commit, and keep what is needed to reveal. The file is written first: without its salt a commitment is lost.

    Raises:
        SubmissionRefused: the source is too large or not Python, or no round is open.
        ConfigurationError, WalletError, ChainFault.
    """
    _die_with(config.parent)
    spec, path = load_contest(config.contest), _one(config.file)
    source = _read(path)
    check_source(source, spec.reveals.largest)
    wallet, clock = _wallet(wallet_config), clock or SystemClock()
    if config.wait:
        await _wait_for(chain, lambda block: _opening(spec, block), clock)
    async with connect(chain.network) as client:
        turn = _open_round(spec, await client.block())
        submission = Submission(
            contest_id=spec.contest_id,
            netuid=config.netuid,
            round=turn.number,
            hotkey=wallet.hotkey.ss58_address,
            salt=new_salt(),
            source=source,
        )
        sealed = config.sealed or path.with_name(path.name + ".sealed")
        replace_file(sealed, revealed(submission).encode())
        await publish_commitment(client, wallet, config.netuid, submission.commitment)
    console.print(
        f"committed to round {turn.number}; reveal from block {turn.closes} and before {turn.revealed}: "
        f"python -m distributed_training.arena reveal {sealed}",
        soft_wrap=True,
        markup=False,
    )
    if config.wait:
        again = RevealConfig(file=(str(sealed),), contest=config.contest, netuid=config.netuid, place=config.place)
        await _wait_for(chain, lambda _: turn.closes, clock)
        await reveal(again, chain, console)


async def reveal(config: RevealConfig, chain: ChainConfig, console: Console) -> None:
    """Publish the source, once its round has closed: earlier, others could commit to it.

    Raises:
        SubmissionRefused: `too_early`, `too_late`, `not_committed`.
        ConfigurationError, ChainFault, HubUnavailable.
    """
    spec, path = load_contest(config.contest), _one(config.file)
    text = _read(path)
    submission = read_reveal(text)
    if submission.contest_id != spec.contest_id or submission.netuid != config.netuid:
        raise ConfigurationError(f"{path} is of contest {submission.contest_id} on subnet {submission.netuid}")
    turn = round_numbered(spec.calendar, submission.round)
    async with connect(chain.network) as client:
        block = await client.block()
        _check_time(turn, block)
        committed = await read_commitments(client, config.netuid, turn.closes - 1)
    found = committed.get(submission.hotkey)
    if found is None or found.data != submission.commitment:
        raise SubmissionRefused(f"{submission.hotkey} committed to something else", reason="not_committed")
    place = config.place or spec.reveals.place
    await asyncio.to_thread(place_at(place).put, turn.number, submission.hotkey, text.decode())
    console.print(f"revealed at {place}, round {turn.number}", soft_wrap=True, markup=False)


def ready(config: ReadyConfig, console: Console, find: Callable[[], Backend] = find_backend) -> None:
    """Tell whether a round could be judged here: with the contest's text, and a sandbox for strangers' code.

    Raises:
        ConfigurationError, CorpusTooSmall: a bad spec, or another text than the contest's.
        SandboxUnavailable: none works here.
    """
    spec = load_contest(config.contest)
    require_corpus(spec.trial)
    console.print(
        f"contest {spec.contest_id}: its text is here, and submissions run in sandboxes of kind '{find().name}'",
        soft_wrap=True,
        markup=False,
    )


async def judge(
    config: ContestConfig,
    chain: ChainConfig,
    wallet_config: WalletConfig,
    runner_within: Callable[[Limits], Runner],
    telemetry: Telemetry,
    clock: Clock | None = None,
) -> None:
    """Be a validator of mechanism 1.

    Raises:
        ConfigurationError, WalletError, ChainFault, CorruptState.
    """
    torch.set_num_threads(1)
    _die_with(config.parent)
    spec = load_contest(config.contest)
    wallet = _wallet(wallet_config)
    async with connect(chain.network) as client:
        uid = await uid_of(client, config.netuid, wallet.hotkey.ss58_address)
        state = StateFile(config.state / "state.json")
        state.open(spec.contest_id, _first_round(spec, await client.block()))
        bench = await asyncio.to_thread(open_bench, spec, config.state / "records", runner_within(spec.limits))
        validator = ContestValidator(
            uid=uid,
            netuid=config.netuid,
            spec=spec,
            client=client,
            wallet=wallet,
            referee=Referee(bench, config.state),
            place=place_at(config.place or spec.reveals.place),
            state=state,
            results=config.state / "rounds",
            telemetry=telemetry,
            clock=clock or SystemClock(),
        )
        await validator.run(config.rounds)


def _first_round(spec: ContestSpec, block: int) -> int:
    """A new validator begins with the round that is on."""
    now = round_at(spec.calendar, block)
    return 0 if now is None else now.number


def _open_round(spec: ContestSpec, block: int) -> Round:
    now = round_at(spec.calendar, block)
    if now is None:
        raise SubmissionRefused(f"the first round opens at block {spec.calendar.start}", reason="too_early")
    if now.phase(block + 1) is not Phase.COMMIT:  # the next block is the first that a commitment can be in
        raise SubmissionRefused(
            f"round {now.number} closed at block {now.closes}; the next one opens at block {now.ends}", reason="closed"
        )
    return now


def _check_time(turn: Round, block: int) -> None:
    if block < turn.closes:
        raise SubmissionRefused(
            f"round {turn.number} closes at block {turn.closes}, now is {block}: who reveals before is copied",
            reason="too_early",
        )
    if block >= turn.revealed:
        raise SubmissionRefused(f"round {turn.number} was decided from block {turn.revealed} on", reason="too_late")


def _opening(spec: ContestSpec, block: int) -> int:
    """The block from which on something can be committed: `block` itself if it can be now."""
    now = round_at(spec.calendar, block)
    if now is None:
        return spec.calendar.start
    return block if now.phase(block + 1) is Phase.COMMIT else now.ends


async def _wait_for(chain: ChainConfig, until: Callable[[int], int], clock: Clock) -> None:
    """Until the head is at the block that `until` gives for the one that it is at first."""
    async with connect(chain.network) as client:
        block = until(await client.block())
        while await client.block() < block:
            await clock.sleep(POLL_SECONDS)


def _die_with(parent: int | None) -> None:
    if parent is not None:
        die_with_parent(parent)


def _wallet(config: WalletConfig) -> Wallet:
    return open_wallet(config.name, config.hotkey, config.path)


def _one(files: tuple[str, ...]) -> Path:
    if len(files) != 1:
        raise ConfigurationError(f"one file is wanted; found {len(files)}")
    return Path(files[0])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
