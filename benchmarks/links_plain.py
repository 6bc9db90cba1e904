"""One process of links.py: carries the bytes of a round over plain TCP, and does nothing else. Driven by JSON lines.

What a round could take at best over these links with this machine's TCP: no encryption, no hashes, nothing reduced and
nobody waited for. stdin: {"host"}, then {"streams": [...]}, then {"go": ...} for each repetition until the end of
input. stdout: {"ready": port} and {"ready": null}, then one result for each repetition.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from benchmarks.allreduce_worker import Result, hear, repeat, say

PIECE = 1 << 18  # bytes
_NUMBER = struct.Struct(">I")


def connected(listener: socket.socket, streams: list[dict[str, Any]]) -> dict[int, socket.socket]:
    """The connection of each stream by its number; some are opened here, and tell it, the others come to us."""
    found: dict[int, socket.socket] = {}
    for stream in streams:
        if stream["address"] is not None:
            found[stream["number"]] = socket.create_connection(tuple(stream["address"]))
            found[stream["number"]].sendall(_NUMBER.pack(stream["number"]))
    while len(found) < len(streams):
        connection, _ = listener.accept()
        found[_NUMBER.unpack(connection.recv(_NUMBER.size, socket.MSG_WAITALL))[0]] = connection
    return found


def send(connection: socket.socket, count: int) -> None:
    piece = memoryview(bytes(PIECE))
    for start in range(0, count, PIECE):
        connection.sendall(piece[: count - start])


def receive(connection: socket.socket, count: int) -> None:
    room = memoryview(bytearray(PIECE))
    while count:
        got = connection.recv_into(room[: min(count, PIECE)])
        if not got:
            raise SystemExit("a connection was cut")
        count -= got


def main() -> None:
    host = hear()["host"]
    with socket.create_server((host, 0), backlog=64) as listener:
        say({"ready": listener.getsockname()[1]})
        streams = hear()["streams"]
        connections = connected(listener, streams)
    say({"ready": None})

    def work(_: Result) -> Result:
        threads = [
            threading.Thread(target=way, args=(connections[stream["number"]], stream[name]))
            for stream in streams
            for way, name in ((send, "send"), (receive, "receive"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {}

    repeat(work)


if __name__ == "__main__":
    main()
