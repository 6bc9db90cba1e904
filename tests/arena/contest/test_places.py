"""Places for reveals: one conformance test for a folder and a real HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from distributed_training.arena.contest.places import FolderPlace, HttpPlace, Place, place_at
from template.clock import ManualClock
from template.errors import HubUnavailable, SubmissionRefused

HOTKEY = "5Hotkey"


class Handler(BaseHTTPRequestHandler):
    """Keeps what is PUT, gives it on GET; /broken/... always fails."""

    kept: dict[str, bytes]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.startswith("/broken"):
            self.kept[self.path] = content
        self._answer(500 if self.path.startswith("/broken") else 201, b"")

    def do_GET(self) -> None:
        if self.path.startswith("/broken"):
            return self._answer(500, b"")
        found = self.kept.get(self.path)
        return self._answer(404 if found is None else 200, found or b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def address() -> Iterator[str]:
    handler = type("Own", (Handler,), {"kept": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["folder", "http"])
def place(request: pytest.FixtureRequest, tmp_path: Path, address: str) -> Place:
    makers: dict[str, Callable[[], Place]] = {
        "folder": lambda: place_at(str(tmp_path / "reveals")),
        "http": lambda: place_at(address + "/reveals/"),
    }
    return makers[request.param]()


def test_what_is_put_is_there(place: Place) -> None:
    """By round and hotkey; a second time replaces it; anything else is not there."""
    place.put(3, HOTKEY, "first ü")
    place.put(3, HOTKEY, "second ü")
    assert place.get(3, HOTKEY, 100) == "second ü".encode()
    assert place.get(4, HOTKEY, 100) is None
    assert place.get(3, "5Other", 100) is None


def test_more_than_asked_for_is_refused(place: Place) -> None:
    """A byte more than the largest, and no more is read."""
    place.put(3, HOTKEY, "x" * 101)
    with pytest.raises(SubmissionRefused) as refused:
        place.get(3, HOTKEY, 100)
    assert refused.value.reason == "too_large"
    assert place.get(3, HOTKEY, 101) == b"x" * 101


@pytest.mark.parametrize("hotkey", ["../5Hotkey", "a/b", "", "5Hot.key"])
def test_a_hotkey_is_no_path(place: Place, hotkey: str) -> None:
    """Nothing but letters and digits reaches a file's name or an address."""
    with pytest.raises(SubmissionRefused):
        place.get(3, hotkey, 100)


def test_a_place_that_fails(address: str, tmp_path: Path) -> None:
    """Is unavailable, which is not the same as that there is nothing."""
    (tmp_path / "file").write_text("")
    for broken in (HttpPlace(address + "/broken"), HttpPlace("http://127.0.0.1:1"), FolderPlace(tmp_path / "file")):
        with pytest.raises(HubUnavailable):
            broken.put(3, HOTKEY, "text")
        with pytest.raises(HubUnavailable):
            broken.get(3, HOTKEY, 100)


def test_an_answer_that_trickles_is_given_up(address: str) -> None:
    """All of it must be there in time, however fast the next byte comes."""

    class Late(ManualClock):
        def monotonic(self) -> float:
            self._elapsed += 3.0
            return super().monotonic()

    place = HttpPlace(address, seconds=2.0, clock=Late())
    place.put(3, HOTKEY, "text")
    with pytest.raises(HubUnavailable, match="no complete answer within 2 seconds"):
        place.get(3, HOTKEY, 100)


def test_a_place_is_told_by_its_address(tmp_path: Path) -> None:
    """http and https are addresses, all else folders."""
    kinds = [type(place_at(where)) for where in ("https://example.org/x", "http://a", str(tmp_path), "~/reveals")]
    assert kinds == [HttpPlace, HttpPlace, FolderPlace, FolderPlace]
