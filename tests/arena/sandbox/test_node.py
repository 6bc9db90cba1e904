"""A node whose process answers what it must not: each time one error, with its reason, and at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.node import SandboxedNode
from distributed_training.model.layout import Layout, Tensor
from distributed_training.strategies.base import Node
from distributed_training.strategies.message import Received
from template.errors import SubmissionError
from tests.arena.sandbox.hostile import CLOCK, process, soon
from tests.arena.small import CPU, SPEC

SIZE = 4
LAYOUT = Layout((Tensor("weight", (2, 2), 0),))
ZEROS, ONES = "bytes(16)", "struct.pack('<4f', 1, 1, 1, 1)"
LOADED = f"request(); answer(1, [], {ZEROS}); request()\n"

pytestmark = pytest.mark.integration


@contextmanager
def node(code: str, limits: Limits | None = None) -> Iterator[SandboxedNode]:
    """A node at zero, of a process that runs `code`."""
    with process(code) as running:
        sandboxed = SandboxedNode(running, limits or Limits(), CLOCK, soon(50), CPU)
        sandboxed.load(b"source", SPEC, torch.zeros(SIZE), Node(0, 2, 1, LAYOUT))
        yield sandboxed


def two_steps(sandboxed: SandboxedNode) -> None:
    for _ in range(2):
        sandboxed.local(torch.zeros(SIZE))
        sandboxed.send()


def test_a_node_gives_and_gets() -> None:
    """Parameters, a message, and what came of it."""
    code = f"""
asked, (source, params) = request()
assert asked["do"] == "load" and asked["node"]["rank"] == 0 and source == b"source" and params == {ZEROS}
answer(1, [], params)
asked, (gradient,) = request()
answer(2, [{{**plain, "count": 4, "delay": 1}}], gradient, {ONES})
asked, values = request()
assert asked["operation"] == "all"
answer(3, [], values[1])
"""
    with node(code) as sandboxed:
        sandboxed.local(torch.arange(4.0))
        (message,) = sandboxed.send()
        assert isinstance(message.payload, torch.Tensor)
        assert message.payload.tolist() == [0, 1, 2, 3]
        assert (message.size, message.delay) == (16, 1)
        assert sandboxed.params.tolist() == [1, 1, 1, 1]
        sandboxed.receive(Received("all", (torch.zeros(4), torch.full((4,), 5.0))))
        assert sandboxed.params.tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("write(b'junk' * 100)", "bytes that are no answer"),
        ("write(bytes(1 << 20))", "bytes that are no answer"),
        ("write(prefix(2, 2, 0xffffffff))", "header of 4294967295 bytes"),
        ("write(prefix(2, 2, 2) + b'{}')", "fields are not messages"),
        ("write(prefix(1, 2, 2) + b'{}')", "kind 1"),
        (f"answer(1, [], {ZEROS})", "request 1 where request 2"),
        (f"answer(3, [], {ZEROS})", "request 3 where request 2"),
        (f"answer(2, [], {ZEROS}, loss=0.0)", "fields are not messages"),
        (f"answer(2, [dict(plain, bytes=0)], bytes(4), {ZEROS})", "fields are not operation"),
        (f"answer(2, [dict(plain, count=33)], bytes(132), {ZEROS})", "33 values where 32 may be"),
        (f"answer(2, [dict(plain, count=2**62)], {ZEROS})", "values where 32 may be"),
        (f"answer(2, [plain] * 65, bytes(260), {ZEROS})", "65 messages"),
        ("answer(2, [], struct.pack('<4f', 1, 1, 1, float('nan')))", "parameters with values that are not finite"),
        (f"answer(2, [plain], struct.pack('<f', float('inf')), {ZEROS})", "'all' with values that are not finite"),
    ],
)
def test_what_must_not_be_answered(code: str, what: str) -> None:
    """Junk, sizes without end or below zero, other numbers, more fields, too much, no numbers."""
    with node(LOADED + code + "\ntime.sleep(1000)") as sandboxed:
        sandboxed.local(torch.zeros(4))
        with pytest.raises(SubmissionError, match=what) as caught:
            sandboxed.send()
    assert caught.value.reason == "answer"


def test_answering_twice() -> None:
    """The second answer is to a request that was not made; it is not taken for the next one's."""
    with node(LOADED + f"answer(2, [], {ZEROS}); answer(2, [], {ONES}); request(); time.sleep(1000)") as sandboxed:
        sandboxed.local(torch.zeros(4))
        assert sandboxed.send() == ()
        sandboxed.local(torch.zeros(4))
        with pytest.raises(SubmissionError, match="request 2 where request 3"):
            sandboxed.send()


def test_an_answer_in_advance_is_still_no_other_node_s_business() -> None:
    """It is an answer without looking at the gradient, which a strategy may give; no more than one is read."""
    ahead = f"answer(1, [], {ZEROS}); answer(2, [], {ONES}); answer(3, [], {ZEROS}); time.sleep(1000)"
    with node(ahead) as sandboxed:
        sandboxed.local(torch.zeros(4))
        assert sandboxed.send() == ()
        assert sandboxed.params.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [3, 5])
def test_parameters_of_another_shape(count: int) -> None:
    """Too few are waited for, until it is late; too many are the beginning of the next answer, and no whole one."""
    code = LOADED + f"answer(2, [], bytes(4 * {count})); request(); time.sleep(1000)"
    with node(code, Limits(answer=1.0)) as sandboxed, pytest.raises(SubmissionError) as caught:
        two_steps(sandboxed)
    assert caught.value.reason == "late"


def test_nothing_is_sent_but_after_a_step() -> None:
    """Not when loaded, and not on what came back."""
    code = f"request(); answer(1, [plain], bytes(4), {ZEROS}); time.sleep(1000)"
    with node(code) as sandboxed, pytest.raises(SubmissionError, match="where none may be sent"):
        _ = sandboxed.params


def test_what_is_on_its_way_is_bounded() -> None:
    """Delays without end would let it fill the simulator's memory; what has arrived counts no more."""
    step = f"request(); answer({{n}}, [dict(plain, count=16, delay={{delay}})], bytes(64), {ZEROS})\n"
    steps = [step.format(n=n, delay=delay) for n, delay in ((2, 0), (3, 9), (4, 0), (5, 9), (6, 9))]
    with node(f"request(); answer(1, [], {ZEROS})\n" + "".join(steps) + "time.sleep(1000)") as sandboxed:
        for _ in range(4):
            sandboxed.local(torch.zeros(4))
            sandboxed.send()
        sandboxed.local(torch.zeros(4))
        with pytest.raises(SubmissionError, match="16 values where 0 may be"):
            sandboxed.send()


def test_the_whole_run_has_an_end() -> None:
    """Whatever is left for an answer."""
    with process("time.sleep(1000)") as running:
        sandboxed = SandboxedNode(running, Limits(answer=1000.0), CLOCK, soon(0.2), CPU)
        sandboxed.load(b"source", SPEC, torch.zeros(SIZE), Node(0, 2, 1, LAYOUT))
        with pytest.raises(SubmissionError, match=r"limits\.wall") as caught:
            _ = sandboxed.params
    assert caught.value.reason == "late"


def test_an_error_of_its_code_is_told() -> None:
    """As text, and as no more than that."""
    code = 'request(); text = b\'{"error": "boom"}\'; write(prefix(3, 1, len(text)) + text); time.sleep(1000)'
    with node(code) as sandboxed, pytest.raises(SubmissionError, match="boom") as caught:
        _ = sandboxed.params
    assert caught.value.reason == "failed"
