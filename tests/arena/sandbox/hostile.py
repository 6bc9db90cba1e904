"""Processes that do what they please, in sandboxes and without one: Python without torch, which starts at once."""

from __future__ import annotations

import json
import sys

from distributed_training.arena.sandbox.backends import Backend, resources
from distributed_training.arena.sandbox.environment import INSIDE, python_environment
from distributed_training.arena.sandbox.limits import MEBIBYTE, Limits
from distributed_training.arena.sandbox.process import PATIENCE, Launch, Process
from template.clock import SystemClock

CLOCK = SystemClock()
OUTPUT = 10_000
# What a process that keeps to the wire would do, for the others to depart from; `size` is P.
PROLOGUE = """
import json, os, struct, sys, time
def read(n):
    got = b""
    while len(got) < n:
        more = os.read(0, n - len(got))
        if not more: sys.exit(0)
        got += more
    return got
def request():
    header = json.loads(read(struct.unpack("<I", read(4))[0]))
    return header, [read(n) for n in header["sizes"]]
def write(data):
    while data: data = data[os.write(1, data):]
def prefix(kind, number, size): return b"dtS1" + struct.pack("<III", kind, number, size)
def answer(number, messages, *bodies, **more):
    text = json.dumps({"messages": messages, **more}).encode()
    write(prefix(2, number, len(text)) + text + b"".join(bodies))
plain = dict(operation="all", combine="mean", codec="none", tensor=True, count=1, delay=0)
"""


def process(code: str, patience: float = PATIENCE) -> Process:
    """A Python process that runs `code` after the prologue."""
    command = (sys.executable, "-I", "-S", "-c", PROLOGUE + code)
    return Process(Launch(command, lifeline=False), OUTPUT, CLOCK, patience)


def shut_in(backend: Backend, code: str) -> Process:
    """`code` in a sandbox as the backend makes it: without limits, and without the filter of system calls."""
    environment = python_environment()
    return Process(backend.launch(environment.command("-c", code), environment, MEBIBYTE), OUTPUT, CLOCK)


CONFINE = f"""
import json, os, sys
sys.path.append("{INSIDE}")
from distributed_training.arena.sandbox.confinement import confine
from distributed_training.arena.sandbox.wire import Kind, write_answer
limits, canary = json.loads(sys.argv[1])
confine(limits, canary)
write_answer(sys.stdout.buffer, Kind.READY, 0, {{}}, ())
answers = os.dup(1)
os.dup2(2, 1)
os.read(0, 1)
"""


def confined(backend: Backend, code: str, limits: Limits, canary: str) -> Process:
    """`code` as a submission's would be, but without torch: first it is ready, then it waits for a byte."""
    environment = python_environment()
    command = environment.command("-c", CONFINE + code, json.dumps([resources(limits), canary]))
    return Process(backend.launch(command, environment, limits.scratch * MEBIBYTE), limits.output, CLOCK)


def soon(seconds: float = 20.0) -> float:
    """A deadline for what happens at once, also on a busy machine."""
    return CLOCK.monotonic() + seconds
