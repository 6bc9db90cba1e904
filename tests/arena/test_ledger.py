"""Bytes: every strategy's closed form at several numbers of nodes, and what cannot be exchanged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distributed_training.arena.ledger import Entry, Ledger, exchange
from distributed_training.averaging.codecs.registry import codec_named
from distributed_training.strategies.base import Node
from distributed_training.strategies.catalogue import Value, build
from distributed_training.strategies.message import Combine, Message, encoded, plain
from template.errors import StrategyError
from tests.strategies.problem import CPU, LAYOUT, SPEC, P, layout_of, play

STEPS, PERIOD = 6, 3
SYNCS = STEPS // PERIOD


def four_bits(n: int) -> int:
    """A header of 8 bytes, half a byte a value, 2 bytes for 64 values."""
    return 8 + math.ceil(n / 2) + 2 * math.ceil(n / 64)


def two_bits(n: int) -> int:
    """A header, a quarter byte a value, 4 bytes for 512 values."""
    return 8 + math.ceil(n / 4) + 4 * math.ceil(n / 512)


def chosen(n: int, density: int) -> int:
    """Of each 4,096 values, and of a last piece, one in `density`."""
    return n // 4096 * (4096 // density) + math.ceil(n % 4096 / density)


def sparse(n: int) -> int:
    """A header, 12 bits an index, and what is chosen in two bits."""
    k = chosen(n, 32)
    return 8 + math.ceil(1.5 * k) + two_bits(k)


def components(n: int, density: int) -> int:
    """Two headers, and 12 + 16 bits for each chosen component."""
    return 16 + math.ceil(1.5 * chosen(n, density)) + 2 * chosen(n, density)


def demo() -> int:
    vectors = sum(t.size for t in LAYOUT.tensors if len(t.shape) == 1)
    return components(P - vectors, 128) + components(vectors, 2)


LAST = sum(t.size for t in LAYOUT.tensors if ".h.1." in t.name or "ln_f" in t.name)  # the second of two fragments
CASES: dict[str, tuple[dict[str, Value], int, Combine]] = {
    "ddp": ({}, 4 * P * STEPS, Combine.MEAN),
    "fedavg": ({"period": PERIOD}, 4 * P * SYNCS, Combine.MEAN),
    "diloco": ({"period": PERIOD}, 4 * P * SYNCS, Combine.MEAN),
    "muloco": ({"period": PERIOD}, 4 * P * SYNCS, Combine.MEAN),
    "diloco-int4": ({"period": PERIOD}, four_bits(P) * SYNCS, Combine.GATHER),
    "diloco-int2": ({"period": PERIOD}, two_bits(P) * SYNCS, Combine.GATHER),
    "sparseloco": ({"period": PERIOD}, sparse(P) * SYNCS, Combine.GATHER),
    "sparta": ({}, 4 * round(0.005 * P) * STEPS, Combine.MEAN),
    "demo": ({}, demo() * STEPS, Combine.GATHER),
    "streaming-diloco": (
        {"period": PERIOD},
        SYNCS * four_bits(P - LAST) + (SYNCS - 1) * four_bits(LAST),
        Combine.GATHER,
    ),
}


@pytest.mark.parametrize("nodes", [2, 4, 8, 16])
@pytest.mark.parametrize("name", CASES)
def test_bytes_are_the_closed_form(name: str, nodes: int) -> None:
    """Sent to the byte; received the same of means and (N - 1) times as much of what is gathered, by every node."""
    options, sent, combine = CASES[name]
    ledger = Ledger(play(build(name, SPEC, options), nodes, STEPS)[1])
    received = sent if combine is Combine.MEAN else sent * (nodes - 1)
    for node in range(nodes):
        traffic = ledger.traffic(node)
        assert (traffic.sent, traffic.received) == (sent, received)


def test_what_sends_nothing_has_no_bytes() -> None:
    """Not one, in no column."""
    ledger = Ledger(play(build("apart", SPEC, {}), 4, STEPS)[1])
    assert not ledger.entries
    assert [ledger.traffic(node) for node in range(4)] == [Ledger().traffic(0)] * 4
    assert (ledger.traffic(0).sent, ledger.traffic(0).received, ledger.traffic(0).peak) == (0, 0, 0)


def fixture() -> dict[str, tuple[int, ...]]:
    """The tensors of the fixture: 4 layers, 128 wide, block 128, 256 bytes."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (256, 128),
        "wpe": (128, 128),
        "ln_f.weight": (128,),
        "ln_f.bias": (128,),
    }
    for i in range(4):
        for name, shape in (("c_attn", (128, 384)), ("o", (128, 128)), ("c_fc", (128, 512)), ("c_proj", (512, 128))):
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]}
        shapes |= {f"h.{i}.ln_{k}.{part}": (128,) for k in (1, 2) for part in ("weight", "bias")}
    return shapes


@pytest.mark.parametrize(
    ("name", "most"), [("sparseloco", 0.055), ("diloco-int2", 0.26), ("diloco-int4", 0.54), ("sparta", 0.021)]
)
def test_bytes_of_the_fixture(name: str, most: float) -> None:
    """For 842,496 parameters one exchange stays below so many bytes a parameter."""
    layout = layout_of(fixture())
    assert layout.size == 842_496
    strategy = build(name, SPEC, {} if name == "sparta" else {"period": 1})
    params = torch.from_numpy(np.random.default_rng(0).standard_normal(layout.size).astype(np.float32))
    state = strategy.local(strategy.init(params, Node(0, 2, 0, layout)), params * 0.1)
    (message,) = strategy.send(state)[1]
    assert message.size <= most * layout.size


def test_peak_and_operations() -> None:
    """The most that one step moved, and the parts that the operations have in it."""

    def entry(step: int, node: int, operation: str, sent: int, received: int) -> Entry:
        return Entry(
            step=step, node=node, operation=operation, combine=Combine.MEAN, codec="none",
            sent=sent, received=received, delay=0,
        )  # fmt: skip

    ledger = Ledger([entry(1, 0, "a", 5, 6), entry(1, 0, "b", 1, 1), entry(2, 0, "a", 5, 7), entry(2, 1, "a", 90, 90)])
    assert (ledger.traffic(0).sent, ledger.traffic(0).received, ledger.traffic(0).peak) == (11, 14, 13)
    parts = ledger.by_operation(0)
    assert {name: (part.sent, part.received, part.peak) for name, part in parts.items()} == {
        "a": (10, 13, 12),
        "b": (1, 1, 2),
    }


def test_a_mean_may_travel_by_two_codecs() -> None:
    """Parts in 8 bits and their average in 4: as in a round of the live subnet, and counted so."""
    values = [torch.linspace(-1, 1, 100) * (node + 1) for node in range(3)]
    payloads = [codec_named("int8-block64").encode(value.numpy()) for value in values]
    messages = [Message("x", Combine.MEAN, "int8-block64+int4-block64", payload, 100) for payload in payloads]
    entries, ((due, received),) = exchange(7, [[message] for message in messages], CPU)
    assert due == 7
    assert {(e.sent, e.received) for e in entries} == {(8 + 100 + 4, 8 + 50 + 4)}
    (mean,) = received.values
    assert float((mean - torch.linspace(-2, 2, 100)).abs().max()) < 2 / 7


def test_messages_must_fit_together() -> None:
    """Another number of them, another operation, length or codec: refused before anything is combined."""
    one = plain("x", torch.zeros(4))
    other, _ = encoded("x", "int8-block16", torch.zeros(4))
    for outgoing in ([[one], []], [[one], [plain("y", torch.zeros(4))]], [[one], [plain("x", torch.zeros(5))]]):
        with pytest.raises(StrategyError, match=r"all must send the same|do not fit together"):
            exchange(1, outgoing, CPU)
    with pytest.raises(StrategyError, match="do not fit together"):
        exchange(1, [[one], [other]], CPU)
    with pytest.raises(StrategyError, match="before it is sent"):
        exchange(1, [[replace(one, delay=-1)]], CPU)


def test_a_payload_is_what_its_codec_says() -> None:
    """No tensor under a codec's name, no wider or longer one, no bytes that the codec did not make."""
    message, _ = encoded("x", "int8-block16", torch.ones(4))
    assert isinstance(message.payload, memoryview)
    for wrong in (
        replace(message, payload=torch.ones(4)),
        replace(message, payload=message.payload[:-1]),
        replace(plain("x", torch.ones(4)), payload=torch.ones(4, dtype=torch.float64)),
        replace(plain("x", torch.ones(4)), payload=torch.ones(5)),
        replace(message, codec="int9"),
    ):
        with pytest.raises(StrategyError, match="'x'"):
            exchange(1, [[wrong], [wrong]], CPU)


def test_what_is_not_finite_has_no_code() -> None:
    """A strategy that diverged is told so where it encodes."""
    with pytest.raises(StrategyError, match="'x' cannot be sent"):
        encoded("x", "int4-block64", torch.tensor([1.0, math.nan]))
