"""Runs a container, and removes it whatever happens: killing docker's client would leave it running.

Started as a script, with the program, the container's name, what follows `docker run`, and a lifeline as in
namespaces.py:

    python -I -S guard.py docker NAME OPTIONS... IMAGE COMMAND... 3 3<lifeline

When the lifeline is touched or cut, or the client ends, the container is removed by force. Imports no package.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

SECONDS = 8.0  # for the engine to remove a container


def main() -> int:
    program, name, *rest = sys.argv[1:-1]
    lifeline = int(sys.argv[-1])
    with subprocess.Popen([program, "run", "--name", name, *rest]) as client:
        process = os.pidfd_open(client.pid)
        select.select([lifeline, process], [], [])
        remove = [program, "rm", "--force", "--volumes", name]
        nowhere = subprocess.DEVNULL
        subprocess.run(remove, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=SECONDS, check=False)
        client.kill()
    status = client.returncode
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
