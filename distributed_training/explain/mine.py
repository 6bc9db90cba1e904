"""The miner's side: what each validator set for it on the chain, and why, from the reports that validators signed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bittensor import Client, Wallet

from distributed_training.peers import targets
from distributed_training.scoring.explain import EpochScored
from distributed_training.scoring.report import Report, ReportResponse, checked
from template.chain.metagraph import Metagraph, read_metagraph, read_weights
from template.errors import BadResponse, ConfigurationError, NotRegistered, StateError
from template.transport.dendrite import Dendrite, DendriteConfig, Outcome
from template.transport.envelope import Evidence
from template.transport.policy import NANO

ASK_SECONDS = 15.0
ASKING = DendriteConfig(max_response_bytes=1024 * 1024)
TARGET = f"/{Report.__name__}"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One epoch of a validator's report, computed again. `total` is the sum of the averages of all its miners."""

    total: float
    scored: EpochScored


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One validator: `share` is the miner's part of its weights on the chain, None if it never set any.

    `silent` says why there is no report, `problem` what is wrong with the one there is; both are empty otherwise.
    """

    validator: int
    hotkey: str
    stake: float
    share: float | None
    set_in: int
    reasons: tuple[Reason, ...]
    silent: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Mine:
    """What the validators think of one miner at `block`, and the answers that they signed, as evidence."""

    uid: int
    hotkey: str
    block: int
    judged: tuple[Judged, ...]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A report out of a file: who signed it for whom, when (Unix seconds, by the asker's clock), and what it holds."""

    validator: int
    signed_by: str
    asked_by: str
    run_id: str
    time: float
    reasons: tuple[Reason, ...]


async def ask(
    client: Client, wallet: Wallet, netuid: int, run_id: str, until: int | None = None, limit: int = 1
) -> Mine:
    """Read the chain, and ask the validators for the last `limit` epochs up to `until`.

    Listed are those that set weights, and those that may and serve an axon.

    Raises:
        ChainFault: the chain cannot be read; NotRegistered: the wallet's hotkey has no uid.
    """
    metagraph = await read_metagraph(client, netuid)
    hotkey = wallet.hotkey.ss58_address
    uid = metagraph.uid_of(hotkey)
    if uid is None:
        raise NotRegistered(f"hotkey {hotkey} has no uid on subnet {netuid}: nobody can have set weights for it")
    rows = await read_weights(client, netuid)
    may = {v for v in range(len(metagraph)) if metagraph.validator_permit[v] and metagraph.axons[v] is not None}
    validators = sorted((may | rows.keys()) - {uid})
    request = Report(run_id=run_id, until=until, limit=limit)
    async with Dendrite(wallet.hotkey, ASKING) as dendrite:
        outcomes = await dendrite.broadcast(targets(metagraph, validators), request, ASK_SECONDS)
    judged = tuple(
        _judged(metagraph, v, hotkey, rows[v].get(uid, 0.0) if v in rows else None, outcomes.get(v)) for v in validators
    )
    evidence = tuple(outcome.evidence for outcome in outcomes.values() if outcome.evidence is not None)
    return Mine(uid=uid, hotkey=hotkey, block=metagraph.block, judged=judged, evidence=evidence)


def _judged(metagraph: Metagraph, uid: int, hotkey: str, share: float | None, outcome: Outcome | None) -> Judged:
    reasons: tuple[Reason, ...] = ()
    silent = problem = ""
    if outcome is None:
        silent = "it serves no axon"
    elif isinstance(outcome.response, ReportResponse):
        try:
            reasons = _reasons(outcome.response, hotkey)
            silent = "" if reasons else _why_none(outcome.response)
        except (BadResponse, StateError) as error:
            problem = str(error)
    else:
        silent = str(outcome.error)
    return Judged(
        validator=uid,
        hotkey=metagraph.hotkeys[uid],
        stake=metagraph.stake[uid],
        share=share,
        set_in=metagraph.last_update[uid],
        reasons=reasons,
        silent=silent,
        problem=problem,
    )


def _reasons(answer: ReportResponse, hotkey: str) -> tuple[Reason, ...]:
    return tuple(Reason(total=total, scored=event) for event, total in checked(answer.epochs, hotkey))


def _why_none(answer: ReportResponse) -> str:
    if answer.last is None:
        return "it has scored no epoch since it was started"
    return f"it has not scored this hotkey in the epochs that it keeps, {answer.first} to {answer.last}"


def save(evidence: Iterable[Evidence], path: Path) -> int:
    """Append the signed answers to a file, one a line; how many.

    Raises:
        ConfigurationError: it cannot be written.
    """
    lines = [item.to_json() + "\n" for item in evidence]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise ConfigurationError(f"the reports cannot be kept in {path}: {error.strerror}") from error
    return len(lines)


def shown(path: Path) -> tuple[Shown, ...]:
    """The reports in a file that `save` wrote, with their signatures and numbers checked; refusals are left out.

    Raises:
        ConfigurationError: the file cannot be read.
        BadResponse: a line is no evidence, a signature does not hold, or it is no report; the message names the line.
        StateError: a report's evidence does not lead to its numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}; give a file that --save wrote") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            evidence = Evidence.from_json(line)
            evidence.verify()
            if evidence.status == 200:
                found.append(_shown(evidence))
        except BadResponse as error:
            raise BadResponse(f"{path}, line {number}: {error}") from error
        except StateError as error:
            raise StateError(f"{path}, line {number}: {error}") from error
    return tuple(found)


def _shown(evidence: Evidence) -> Shown:
    signed = evidence.request
    if signed.target != TARGET:
        raise BadResponse(f"it is the answer to {signed.target}, not to {TARGET}")
    try:
        request = Report.model_validate_json(signed.body)
        answer = ReportResponse.model_validate_json(evidence.body)
    except ValueError as error:
        raise BadResponse(f"it is signed, and of another shape than this version's reports: {error}") from error
    return Shown(
        validator=answer.validator,
        signed_by=signed.receiver,
        asked_by=signed.sender,
        run_id=request.run_id,
        time=signed.nonce / NANO,
        reasons=_reasons(answer, signed.sender),
    )
