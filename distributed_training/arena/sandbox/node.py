"""A simulated node whose strategy runs in a sandbox: requests go in, checked answers come out.

One process a node, for nodes that shared one could tell each other something that the ledger does not see. While one
node's process computes, the simulator goes on with the next node: an answer is waited for only when it is needed.
Gradients and parameters are computed on the CPU there, wherever the model is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distributed_training.arena.sandbox.limits import Limits
from distributed_training.arena.sandbox.process import Process
from distributed_training.arena.sandbox.schema import (
    IN_FLIGHT,
    Malformed,
    announced,
    failure,
    finite_vector,
    header_size,
    message_of,
)
from distributed_training.arena.sandbox.wire import ANSWER, Body, Kind, request_parts
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Node
from distributed_training.strategies.message import Message, Received
from template.clock import Clock
from template.errors import SubmissionError

_FLOAT = 4


class SandboxedNode:
    """A node as the simulator sees it."""

    def __init__(self, process: Process, limits: Limits, clock: Clock, wall: float, device: torch.device) -> None:
        """`wall`: the end of the run on the clock, at the latest."""
        self._process, self._limits, self._clock, self._wall = process, limits, clock, wall
        self._device = device
        self._number, self._step, self._size = 0, 0, 0
        self._waiting = False
        self._flying: list[tuple[int, int]] = []  # (step after which it is due, values)
        self._params = torch.empty(0)

    def load(self, source: bytes, optimizer: OptimizerSpec, params: torch.Tensor, node: Node) -> None:
        """Make it node `node` of the strategy that `source` defines, at `params` [P]."""
        layout = [(tensor.name, tensor.shape, tensor.offset) for tensor in node.layout.tensors]
        who = {"rank": node.rank, "nodes": node.nodes, "seed": node.seed, "layout": layout}
        self._size = node.layout.size
        self._params = params
        self._ask({"do": "load", "optimizer": dataclasses.asdict(optimizer), "node": who}, [source, _bytes(params)])

    @property
    def params(self) -> torch.Tensor:
        self._settle()
        return self._params

    def local(self, gradient: torch.Tensor) -> None:
        self._settle()
        self._step += 1
        self._ask({"do": "step"}, [_bytes(gradient)])

    def send(self) -> Sequence[Message]:
        return self._collect()

    def receive(self, received: Received) -> None:
        self._settle()
        self._ask({"do": "receive", "operation": received.operation}, [_bytes(value) for value in received.values])

    def _ask(self, header: Mapping[str, Any], bodies: Sequence[Body]) -> None:
        self._process.write(request_parts(dict(header), bodies), self._deadline())
        self._number += 1
        self._waiting = True

    def _settle(self) -> None:
        """Take the answer to a request that lets nothing be sent, if there is one to come."""
        if self._waiting and self._collect():
            raise Malformed("messages where none may be sent")

    def _collect(self) -> tuple[Message, ...]:
        """The answer to the last request: new parameters, and what is sent."""
        deadline = self._deadline()
        kind, size = header_size(
            bytes(self._process.read(ANSWER.size, deadline)), self._number, (Kind.ANSWER, Kind.FAILED)
        )
        header = bytes(self._process.read(size, deadline))
        if kind is Kind.FAILED:
            raise SubmissionError(f"the submission failed: {failure(header)}", reason="failed")
        due = announced(header, self._room())
        messages = tuple(message_of(what, self._process.read(what.size, deadline)) for what in due)
        params = finite_vector(self._process.read(_FLOAT * self._size, deadline), "parameters")
        self._flying += [(self._step + message.delay, message.count) for message in messages]
        self._params, self._waiting = params.to(self._device), False
        return messages

    def _room(self) -> int:
        """How many values it may send now."""
        self._flying = [(due, count) for due, count in self._flying if due >= self._step]
        return IN_FLIGHT * self._size - sum(count for _, count in self._flying)

    def _deadline(self) -> float:
        return min(self._clock.monotonic() + self._limits.answer, self._wall)


def _bytes(values: torch.Tensor) -> memoryview:
    """float32 [n] as bytes, in place where it is on the CPU."""
    return values.detach().cpu().contiguous().numpy().data.cast("B")
