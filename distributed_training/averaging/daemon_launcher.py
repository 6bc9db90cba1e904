"""Starts the libp2p daemon so that it cannot outlive the neuron. Run as a script, with an isolated interpreter:

    python -I -S daemon_launcher.py PARENT_PID exec|watch DAEMON [ARGUMENT ...]

`exec` (Linux): asks the kernel to kill this process when its parent ends, then becomes the daemon. The request is kept
across the exec and works for any end of the parent, SIGKILL included. `watch` (elsewhere): starts the daemon as a child
and looks twice a second whether the parent is still there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL to this process when its parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it ended before the request
        sys.exit(1)


def watch(parent: int, command: list[str]) -> int:
    """Run the command until it or the parent ends."""
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while os.getppid() == parent:
        try:
            return child.wait(WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    child.kill()
    return child.wait()


def main() -> None:
    parent, mode, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if mode == "exec":
        die_with_parent(parent)
        os.execv(command[0], command)
    sys.exit(watch(parent, command))


if __name__ == "__main__":
    main()
