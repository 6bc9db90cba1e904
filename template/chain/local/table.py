"""A subnet of a chain file as a table for people."""

from __future__ import annotations

from rich.table import Table

from template.chain.local import epoch, neurons, runtime_api
from template.chain.local.items import RAO, U16
from template.chain.local.ledger import Ledger
from template.chain.local.state import State
from template.chain.metagraph import axon_of
from template.errors import ConfigurationError

COLUMNS = ("uid", "hotkey", "stake", "permit", "axon", "last update", "incentive", "dividends", "emission")


def subnet(chain: Ledger, netuid: int) -> Table:
    """One row a uid; incentives of all mechanisms.

    Raises:
        ConfigurationError: no such subnet.
    """
    head = chain.head()
    epoch.catch_up(chain, head)
    state = State(chain.db, head)
    graph = runtime_api.get_metagraph(state, netuid)
    if graph is None:
        known = ", ".join(map(str, epoch.subnets(state))) or "none"
        raise ConfigurationError(f"{chain.path} has no subnet {netuid}; subnets: {known}")
    upcoming = epoch.next_epoch_of(state, netuid)
    title = f"subnet {netuid}, block {head}, tempo {graph['tempo']}, next epoch {upcoming}"
    table = Table(*COLUMNS, title=title)
    for column in table.columns:
        column.no_wrap = True
    incentives = [state.vector("Incentive", i, graph["num_uids"]) for i in neurons.mechanisms(state, netuid)]
    for uid in range(graph["num_uids"]):
        axon = axon_of(graph["axons"][uid])
        table.add_row(
            str(uid),
            graph["hotkeys"][uid][:8] + ("… (owner)" if graph["hotkeys"][uid] == graph["owner_hotkey"] else "…"),
            f"{graph['total_stake'][uid] / RAO:.3f}",
            "yes" if graph["validator_permit"][uid] else "no",
            f"{axon.ip}:{axon.port}" if axon else "-",
            str(graph["last_update"][uid]),
            " / ".join(f"{column[uid] / U16:.3f}" for column in incentives),
            f"{graph['dividends'][uid] / U16:.3f}",
            f"{graph['emission'][uid] / RAO:.3f}",
        )
    return table
