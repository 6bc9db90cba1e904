"""SubtensorModule: the address a neuron is reached at."""

from __future__ import annotations

from template.chain.local import neurons
from template.chain.local.codec import U8, U16, U32, U128
from template.chain.local.dispatch import Execution, Handlers, require
from template.chain.local.items import NO_AXON, SUBTENSOR

IPV4_LOOPBACK = 0x7F000001
IPV4_BROADCAST = 2**32 - 1
IPV6_LOOPBACK = 1
IPV6_LAST = 2**128 - 1


def is_valid_address(ip: int, ip_type: int) -> bool:
    """The pallet's rule: only the one address 127.0.0.1 is refused of the loopback net, and only ::1 of IPv6's."""
    if ip_type == 4:
        return ip < IPV4_BROADCAST and ip != IPV4_LOOPBACK
    return ip not in (IPV6_LOOPBACK, IPV6_LAST)


def serve_axon(
    run: Execution,
    *,
    netuid: U16,
    version: U32,
    ip: U128,
    port: U16,
    ip_type: U8,
    protocol: U8,
    placeholder1: U8,
    placeholder2: U8,
) -> None:
    state, hotkey = run.state, run.signer
    require(neurons.uid_of(state, netuid, hotkey) is not None, "HotKeyNotRegisteredInNetwork")
    require(ip_type in (4, 6), "InvalidIpType")
    require(is_valid_address(ip, ip_type), "InvalidIpAddress")
    before = state.get("Axons", netuid, hotkey) or NO_AXON
    limit = state.get("ServingRateLimit", netuid)
    fresh = limit == 0 or before["block"] == 0 or state.block - before["block"] >= limit
    require(fresh, "ServingRateLimitExceeded")
    require(port != 0, "InvalidPort")
    record = {
        "block": state.block,
        "version": version,
        "ip": ip,
        "port": port,
        "ip_type": ip_type,
        "protocol": protocol,
        "placeholder1": placeholder1,
        "placeholder2": placeholder2,
    }
    state.put("Axons", netuid, hotkey, value=record)
    run.emit(SUBTENSOR, "AxonServed", [netuid, hotkey])


HANDLERS: Handlers = {(SUBTENSOR, "serve_axon"): serve_axon}
