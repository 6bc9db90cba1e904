"""The libp2p daemon (p2pd) of one neuron: its process and its control socket.

Every request has a connection of its own that is closed whatever happens, also when the caller is cancelled; a
hanging daemon or peer can therefore never hold the neuron, nor leave a descriptor behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import hivemind.hivemind_cli
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from distributed_training.averaging import daemon_launcher
from template.errors import AveragingError

log = logging.getLogger(__name__)

READ_AHEAD = 1 << 20  # bytes that a stream's reader takes before it is asked
# Two peers that call each other at the same moment from the ports that they listen on get one TCP connection on which
# both are callers: neither handshake succeeds, and both try again at the same moment, seconds later, with no end.
OWN_PORTS = {"LIBP2P_TCP_REUSEPORT": "false"}
STOP_SECONDS = 3.0
Request = p2pd_pb2.Request


def p2pd_path() -> str:
    """The daemon that hivemind ships."""
    return str(Path(next(iter(hivemind.hivemind_cli.__path__))) / "p2pd")


class Daemon:
    """A running p2pd that ends with this process. Start with `start`, end with `stop`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._tail = "no output"
        self._log_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, arguments: Sequence[str], seconds: float) -> Daemon:
        """Run p2pd with these arguments until it answers on its control socket.

        Raises:
            AveragingError: it did not within `seconds`; the message has its last line of output.
        """
        folder = Path(tempfile.mkdtemp(prefix="dt-p2p-"))  # only this user may command the daemon
        mode = "exec" if sys.platform == "linux" else "watch"
        launcher = [sys.executable, "-I", "-S", str(daemon_launcher.__file__), str(os.getpid()), mode]
        process = await asyncio.create_subprocess_exec(
            *launcher,
            p2pd_path(),
            f"-listen=/unix{folder}/control.sock",
            *arguments,
            env={**os.environ, **OWN_PORTS},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        daemon = cls(process, folder)
        daemon._log_task = asyncio.create_task(daemon._read_output())
        try:
            async with asyncio.timeout(seconds):
                await daemon._wait_until_it_answers()
        except (TimeoutError, AveragingError) as error:
            await daemon.stop()
            why = str(error) or f"not within {seconds:g} s"
            raise AveragingError(f"p2pd did not start: {why}; its last output: {daemon._tail}") from error
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def control_address(self) -> Multiaddr:
        return Multiaddr(f"/unix{self._folder}/control.sock")

    def socket_path(self, name: str) -> Path:
        """A path in the daemon's private folder, which goes when the daemon stops."""
        return self._folder / name

    async def stop(self) -> None:
        """End the daemon, with force if it does not go, and remove its sockets."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._log_task is not None:
            await self._log_task  # its pipe ended with the process
        shutil.rmtree(self._folder, ignore_errors=True)

    async def identify(self) -> tuple[PeerID, tuple[Multiaddr, ...]]:
        """The peer id and the addresses that it listens on or announces."""
        answer = (await self._ask(Request(type=Request.IDENTIFY))).identify
        return PeerID(answer.id), tuple(Multiaddr(address) for address in answer.addrs)

    async def connect(self, peer_id: PeerID, addresses: Sequence[bytes]) -> None:
        """Connect to a peer at these addresses (`libp2p.parse_peer`); at once if it is connected."""
        wanted = p2pd_pb2.ConnectRequest(peer=peer_id.to_bytes(), addrs=addresses)
        await self._ask(Request(type=Request.CONNECT, connect=wanted))

    async def register(self, protocol: str, socket: Path) -> None:
        """Hand incoming streams of `protocol` to the listener on `socket`."""
        wanted = p2pd_pb2.StreamHandlerRequest(addr=_unix(socket), proto=[protocol], balanced=False)
        await self._ask(Request(type=Request.STREAM_HANDLER, streamHandler=wanted))

    async def unregister(self, protocol: str, socket: Path) -> None:
        wanted = p2pd_pb2.RemoveStreamHandlerRequest(addr=_unix(socket), proto=[protocol])
        await self._ask(Request(type=Request.REMOVE_STREAM_HANDLER, removeStreamHandler=wanted))

    async def open(self, peer_id: PeerID, protocol: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to a connected peer; the caller owns the connection to the daemon that it runs over."""
        wanted = p2pd_pb2.StreamOpenRequest(peer=peer_id.to_bytes(), proto=[protocol])
        async with self._asking(Request(type=Request.STREAM_OPEN, streamOpen=wanted), keep=True) as (_, reader, writer):
            return reader, writer

    async def _ask(self, request: p2pd_pb2.Request) -> p2pd_pb2.Response:
        async with self._asking(request, keep=False) as (response, _, _):
            return response

    @contextlib.asynccontextmanager
    async def _asking(
        self, request: p2pd_pb2.Request, *, keep: bool
    ) -> AsyncIterator[tuple[p2pd_pb2.Response, asyncio.StreamReader, asyncio.StreamWriter]]:
        """Send one request on a new connection; keep the connection only if asked to and the answer is good."""
        writer: asyncio.StreamWriter | None = None
        kept = False
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket_path("control.sock"), limit=READ_AHEAD)
            await write_pbmsg(writer, request)
            response = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, response)
            if response.type == p2pd_pb2.Response.ERROR:
                raise AveragingError(f"libp2p: {response.error.msg}")
            kept = keep
            yield response, reader, writer
        except (OSError, EOFError) as error:
            raise AveragingError(f"the libp2p daemon does not answer: {error!r}") from error
        finally:
            if writer is not None and not kept:
                writer.transport.abort()

    async def _wait_until_it_answers(self) -> None:
        while True:
            if not self.alive:
                raise AveragingError(f"it ended with status {self._process.returncode}")
            if self.socket_path("control.sock").exists():
                with contextlib.suppress(AveragingError):  # bound, but not listening yet
                    await self.identify()
                    return
            await asyncio.sleep(0.02)

    async def _read_output(self) -> None:
        """Keep the pipe empty and the last line for error messages."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._tail = line.decode(errors="replace").strip()
            log.debug("p2pd: %s", self._tail)


def _unix(socket: Path) -> bytes:
    address: bytes = Multiaddr(f"/unix{socket}").to_bytes()
    return address
