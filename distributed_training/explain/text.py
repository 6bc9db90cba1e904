"""An account for a person: tables, every number of the formula in full, and what the words mean."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from distributed_training.explain.account import Account, ChainAccount, Replayed
from distributed_training.explain.mine import Judged, Mine, Reason, Shown
from distributed_training.scoring.combine import Outcome, Row, Rules, epochs_to_fair_share, subject
from template.console import printable

NUMBERS = frozenset(
    ("bytes", "seconds", "attempt", "block", "share", "u16", "stake", "weight on the chain", "set in block")
)


def show(console: Console, account: Account) -> None:
    """Print an account."""
    for part in (_head(account), *_sections(account)):
        console.print(part)
        console.print()


def show_replayed(console: Console, name: str, found: Replayed) -> None:
    """Print what a whole log holds."""
    restarts = f", {found.restarts} new beginnings without memory" if found.restarts else ""
    console.print(
        plain(
            f"{name}: {found.epochs} epochs ({found.first_epoch} to {found.last_epoch}) of {found.miners} miners and "
            f"{found.payments} payments computed again, identical to the bit{restarts}"
        ),
        soft_wrap=True,
    )


def show_mine(console: Console, mine: Mine) -> None:
    """Print what the validators think of a miner: a line each, then their reasons."""
    console.print(plain(f"uid {mine.uid}, hotkey {mine.hotkey}, at block {mine.block}"))
    table = _table("validator", "stake", "weight on the chain", "set in block", "scored epoch", "its weight", "outcome")
    for one in mine.judged:
        block = "-" if one.share is None else str(one.set_in)  # else it is that of its registration
        table.add_row(str(one.validator), f"{one.stake:.6g}", _maybe(one.share), block, *_verdict(one))
    console.print(table)
    console.print(plain("weights on the chain may be of an earlier epoch, and are rounded to u16"))
    for one in mine.judged:
        for reason in one.reasons:
            console.print()
            console.print(plain(f"validator {one.validator}, hotkey {one.hotkey}"))
            show_reason(console, reason)


def _verdict(one: Judged) -> tuple[RenderableType, ...]:
    if not one.reasons:
        return ("-", "-", plain(f"its report is false: {one.problem}" if one.problem else f"no report: {one.silent}"))
    row = one.reasons[-1].scored.rows[0]
    return (str(one.reasons[-1].scored.epoch), f"{row.weight:.6g}", plain(": ".join(filter(None, _said(row)))))


def show_report(console: Console, report: Shown) -> None:
    """Print a report whose signature holds."""
    console.print(
        plain(
            f"validator {report.validator}, hotkey {report.signed_by}\n"
            f"signed this for hotkey {report.asked_by} of run {report.run_id}, which asked at {when(report.time)}"
        )
    )
    for reason in report.reasons:
        console.print()
        show_reason(console, reason)


def show_reason(console: Console, reason: Reason) -> None:
    """Print one epoch of a report."""
    event, (row,) = reason.scored, reason.scored.rows
    console.print(plain(f"epoch {event.epoch}: " + ": ".join(filter(None, _said(row)))))
    seen = ", ".join(str(standing) for standing in row.evidence.standings) or "none was seen"
    console.print(_section("Audits", _audits(row, event.rules, ())))
    console.print(_section("Transfers to the validator", _transfers(row, event.rules)))
    console.print(_section("Rounds", plain(seen)))
    console.print(_section("From these to the score", factors(row, event.rules)))
    console.print(_section("From the score to the weight", weight(row, event.rules, reason.total, event.burn)))


def _said(row: Row) -> tuple[str, str]:
    return str(row.outcome), row.reason


def plain(text: str) -> Text:
    """Text as it is, without markup or control characters: reasons may be a stranger's."""
    return Text(printable(text))


def _head(account: Account) -> RenderableType:
    row = account.row
    who = "a validator" if account.validator is None else f"validator {account.validator}"
    lines = [
        f"uid {row.evidence.uid}, hotkey {row.evidence.hotkey}",
        f"epoch {account.epoch} of {account.run_id or 'a run that the log does not name'}, scored by {who} at "
        f"{when(account.scored_at)}",
        f"{row.outcome}" + (f": {row.reason}" if row.reason else ""),
    ]
    return Group(*(plain(line) for line in lines))


def _sections(account: Account) -> Iterator[RenderableType]:
    yield _section("Audits", _audits(account.row, account.rules, account.silences))
    yield _section("Transfers to the validator", _transfers(account.row, account.rules))
    yield _section("Rounds", _rounds(account))
    yield _section("From these to the score", factors(account.row, account.rules))
    yield _section("From the score to the weight", weight(account.row, account.rules, account.total, account.burn))
    yield _section("On the chain", _chain(account.chain))


def _section(title: str, content: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(content, (0, 0, 0, 2), expand=False))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        number = name in NUMBERS
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _audits(row: Row, rules: Rules, silences: tuple[str, ...]) -> RenderableType:
    steps = row.evidence.steps
    counted = plain(
        f"{steps.samples} samples in {steps.counted} records that count; {steps.off_assignment} off assignment, "
        f"{steps.duplicate} counted before, {steps.failed} failed an audit"
    )
    silent = [plain(f"its records were not seen: {reason}") for reason in silences]
    if not row.evidence.audits:
        return Group(counted, *silent, plain("none of its records was recomputed"))
    loss, gradient = f"loss off by (at most {rules.audit.loss_tolerance:g})", "gradient off by (at most "
    table = _table("audited", loss, f"{gradient}{rules.audit.gradient_tolerance:g})", "agreement", "finding")
    for audit in row.evidence.audits:
        differences = (_maybe(audit.loss_difference), _maybe(audit.gradient_difference))
        table.add_row(subject(audit), *differences, f"{audit.agreement:.6g}", plain(str(audit.finding)))
    least = plain(f"an agreement below {rules.audit.threshold:g} fails; the worst audit counts")
    return Group(counted, *silent, table, least, *_contributed(row, rules), *_replayed(row, rules))


def _contributed(row: Row, rules: Rules) -> Iterator[RenderableType]:
    """What was put into the average against the records that were recomputed, where there are such comparisons."""
    checks = [a for a in row.evidence.audits if a.alignment is not None and a.inflation is not None]
    if not checks:
        return
    table = _table(
        f"contribution's signs agree by (at least {rules.audit.alignment:g})",
        f"its size (at most {rules.audit.inflation:g})",
        "finding",
    )
    for check in checks:
        table.add_row(_maybe(check.alignment), _maybe(check.inflation), plain(str(check.finding)))
    yield table


def _replayed(row: Row, rules: Rules) -> Iterator[RenderableType]:
    """Stretches of the miner's own steps that were computed again, where there are such."""
    replay = rules.audit.replay
    checks = [audit for audit in row.evidence.audits if audit.drift is not None]
    if replay is None or not checks:
        return
    table = _table("replayed from", f"its steps lead elsewhere by (at most {replay.tolerance:g} of the way)", "finding")
    for check in checks:
        table.add_row(subject(check), _maybe(check.drift), plain(str(check.finding)))
    yield table
    for found in (audit.improvement for audit in row.evidence.audits if audit.improvement is not None):
        yield plain(
            f"its contribution alone lowers the loss by {found.own:.4g} (at most {found.own_high:.4g}) on its own "
            f"pages, by {found.fresh:.4g} (at most {found.fresh_high:.4g}) on fresh ones; the gap lies between "
            f"{found.gap_low:.4g} and {found.gap_high:.4g}"
        )


def _transfers(row: Row, rules: Rules) -> RenderableType:
    if not row.evidence.transfers:
        return plain("none was measured")
    table = _table("bytes", "seconds", "bytes/s", "of the reference")
    for moved in row.evidence.transfers:
        rate = moved.bytes / moved.seconds if moved.seconds > 0 else None
        share = "-" if rate is None else f"{rate / rules.scoring.reference_rate:.1%}"
        table.add_row(f"{moved.bytes}", f"{moved.seconds:.6g}", "-" if rate is None else f"{rate:.6g}", share)
    return Group(table, plain(f"the reference is {rules.scoring.reference_rate:g} bytes/s; the median counts"))


def _rounds(account: Account) -> RenderableType:
    extra = [plain(text) for text in account.exclusions]
    if not account.rounds:
        return Group(plain("none was seen"), *extra)
    table = _table("attempt", "round", "ended", "the miner", "why")
    for seen in account.rounds:
        ended = "-" if seen.completed is None else ("completed" if seen.completed else "failed")
        attempt = "-" if seen.attempt is None else str(seen.attempt)
        table.add_row(attempt, (seen.round_id or "-")[:12], ended, str(seen.standing), plain(seen.why))
    return Group(table, *extra)


def factors(row: Row, rules: Rules) -> RenderableType:
    """The formula with its numbers."""
    score, beta = row.score, rules.scoring.bandwidth_share
    table = _table("", "", "")
    table.show_header = False
    table.add_row("g", _full(score.gradient), "gradient: agreement of the audits")
    table.add_row("s", str(score.samples), "samples, verified")
    table.add_row("b", _full(score.bandwidth), f"bandwidth, {score.bandwidth_source}")
    table.add_row("p", _full(score.participation), f"participation, {score.participation_source}")
    table.add_row("score", repr(score.score), f"g * s * (1 - {beta!r} + {beta!r} * b) * p; what is none is left out")
    return table


def weight(row: Row, rules: Rules, total: float, burn: bool) -> RenderableType:
    """From the score to the weight, with its numbers."""
    table = _table("", "", "")
    table.show_header = False
    table.add_row("average before", repr(row.before.ema), "")
    table.add_row("average after", repr(row.after.ema), _how(row, rules))
    table.add_row("sum of all", repr(total), "")
    burned = "nobody earned anything: all weight is burned"
    table.add_row("weight", repr(row.weight), burned if burn else "average after / sum of all")
    slow = epochs_to_fair_share(rules.scoring.ema, held_epochs=rules.scoring.held_epochs)
    note = plain(f"the average of a newcomer is within 5 % of its score after {slow} epochs in which it was observed")
    return Group(table, note)


def _paid_for(row: Row, held_epochs: int) -> str:
    """Which score enters the average."""
    if not held_epochs or row.outcome is not Outcome.SCORED:
        return "score"
    if len(row.before.held) < held_epochs:
        return f"0: scores are held back for {held_epochs} epochs"
    return f"{row.before.held[0]!r}, the score of {held_epochs} epochs ago"


def _how(row: Row, rules: Rules) -> str:
    alpha = rules.scoring.ema
    formula = f"(1 - {alpha!r}) * before + {alpha!r} * {_paid_for(row, rules.scoring.held_epochs)}"
    match row.outcome:
        case Outcome.SCORED:
            return formula
        case Outcome.LEFT_OUT | Outcome.UNAUDITED:
            return f"{formula}, but not more than before; without an audit g counts as 1"
        case Outcome.KEPT:
            return "as it was"
        case _:
            return f"zero, through epoch {row.after.unpaid_through}"


def _chain(attempts: tuple[ChainAccount, ...]) -> RenderableType:
    if not attempts:
        return plain("no weights were set from these scores: others were scored before it was time to")
    table = _table("block", "time", "outcome", "share", "u16", "detail")
    for attempt in attempts:
        stored = "-" if attempt.stored is None else f"{attempt.stored} of {attempt.largest}"
        row = (str(attempt.block), when(attempt.time), attempt.outcome, repr(attempt.share), stored)
        table.add_row(*row, plain(attempt.detail))
    return Group(table, plain("u16: what the chain was read to hold afterwards, and the largest of that row"))


def when(seconds: float) -> str:
    """A time for a person, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _maybe(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _full(value: float | None) -> str:
    return "none" if value is None else repr(value)
