"""The sandbox's side of a run, as a script: confine this process, then serve requests with the submission.

    python -I -S -B inside.py PLAN <requests >answers

PLAN is JSON: what `sys.path` needs, the limits, threads, and whether it is only a trial of the sandbox. Standard input
and output carry the wire (wire.py); before the submission's code runs they are moved away, and what it prints goes to
standard error. Status 125: not confined; the reason is on standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

FAILED = 125


def main() -> int:
    plan: dict[str, Any] = json.loads(sys.argv[1])
    sys.path.extend(plan["search"])
    requests, answers = _moved(0, os.O_RDONLY, "rb"), _moved(1, None, "wb")
    if not _confined(plan):
        return FAILED
    from distributed_training.arena.sandbox.wire import Kind, write_answer

    if plan["trial"]:
        write_answer(answers, Kind.READY, 0, {}, ())
        return 0
    from distributed_training.arena.sandbox.worker import serve

    return serve(requests, answers, plan["threads"])


def _moved(descriptor: int, instead: int | None, mode: str) -> BinaryIO:
    """The stream at `descriptor`, under another number; /dev/null or standard error takes its place."""
    stream = os.fdopen(os.dup(descriptor), mode)
    replacement = 2 if instead is None else os.open("/dev/null", instead)
    os.dup2(replacement, descriptor)
    return stream  # type: ignore[return-value]  # binary by its mode


def _confined(plan: dict[str, Any]) -> bool:
    from distributed_training.arena.sandbox.confinement import NotConfined, confine
    from distributed_training.arena.sandbox.seccomp import NoFilter

    try:
        confine(plan["limits"], plan["canary"])
    except (NotConfined, NoFilter, OSError, ValueError) as error:
        os.write(2, f"no sandbox: {error}\n".encode())
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
