"""Inside the sandbox: the submission's strategy at work, one request after another.

It shares its process with the submission, so nothing here protects anything: what counts is checked outside.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from distributed_training.arena.node import LocalNode
from distributed_training.arena.sandbox.schema import announced
from distributed_training.arena.sandbox.wire import Body, Kind, Request, read_request, write_answer
from distributed_training.averaging.codecs.codec import MOST_VALUES
from distributed_training.model.layout import Layout, Tensor
from distributed_training.run import OptimizerSpec
from distributed_training.strategies.base import Node
from distributed_training.strategies.message import Message, Received

MODULE = "submission"
LONGEST_ERROR = 4000  # characters


class BadSubmission(Exception):
    """The file does not define a strategy."""


def serve(requests: BinaryIO, answers: BinaryIO, threads: int) -> int:
    """Answer until the requests end; status 0, or 1 after an error of the submission."""
    torch.set_num_threads(threads)
    write_answer(answers, Kind.READY, 0, {}, ())
    worker, number = _Worker(), 0
    while (request := read_request(requests)) is not None:
        number += 1
        try:
            messages = worker.answer(request)
            header = {"messages": [_described(message) for message in messages]}
            bodies = [*(_body(message.payload) for message in messages), _body(worker.params)]
            _require_sizes(header, bodies)
        except Exception:  # noqa: BLE001  # the edge of a loop: any error of a stranger's code, told with its traceback
            write_answer(answers, Kind.FAILED, number, {"error": traceback.format_exc()[-LONGEST_ERROR:]}, ())
            return 1
        write_answer(answers, Kind.ANSWER, number, header, bodies)
    return 0


class _Worker:
    """One node."""

    def __init__(self) -> None:
        self._node: LocalNode | None = None

    @property
    def params(self) -> torch.Tensor:
        return self._loaded.params

    @property
    def _loaded(self) -> LocalNode:
        if self._node is None:
            raise BadSubmission("no submission was loaded")
        return self._node

    def answer(self, request: Request) -> Sequence[Message]:
        """Do as asked; the messages that the node sends now."""
        match request.header["do"]:
            case "load":
                self._node = _load(request)
                return ()
            case "step":
                self._loaded.local(_vector(request.bodies[0]))
                return self._loaded.send()
            case _:
                values = tuple(_vector(body) for body in request.bodies)
                self._loaded.receive(Received(request.header["operation"], values))
                return ()


def _load(request: Request) -> LocalNode:
    source, params = request.bodies
    node, spec = request.header["node"], OptimizerSpec(**request.header["optimizer"])
    _seed(node["seed"])
    layout = Layout(tuple(Tensor(name, tuple(shape), offset) for name, shape, offset in node.pop("layout")))
    return LocalNode(strategy_of(bytes(source), spec), _vector(params), Node(layout=layout, **node))


def _seed(seed: int) -> None:
    """What draws without a seed of its own draws the same in each run, too."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed % (1 << 63))


def strategy_of(source: bytes, spec: OptimizerSpec) -> Any:
    """What `strategy(spec)` of the submission returns; any error of its code goes on."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module  # dataclasses look their module up
    exec(compile(source, f"{MODULE}.py", "exec"), module.__dict__)
    make = getattr(module, "strategy", None)
    if not callable(make):
        raise BadSubmission("the file defines no function strategy(optimizer)")
    return make(spec)


def _vector(body: bytearray) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(body, np.float32))


def _described(message: Message) -> dict[str, Any]:
    return {
        "operation": message.operation,
        "combine": message.combine.value,
        "codec": message.codec,
        "tensor": isinstance(message.payload, torch.Tensor),
        "count": message.count,
        "delay": message.delay,
    }


def _require_sizes(header: dict[str, Any], bodies: Sequence[Body]) -> None:
    """What is read outside, told here in time: a payload that is too short would only be waited for."""
    for what, body in zip(announced(json.dumps(header).encode(), MOST_VALUES), bodies, strict=False):
        if memoryview(body).nbytes != what.size:
            found = memoryview(body).nbytes
            raise BadSubmission(
                f"'{what.operation}': {found} bytes, and {what.count} values by its codec are {what.size}"
            )


def _body(values: torch.Tensor | memoryview) -> Body:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().contiguous().numpy().data.cast("B")
    return values
