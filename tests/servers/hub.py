"""A Hugging Face Hub for tests: model repositories over real sockets, with LFS, tokens and injected faults.

    with HubServer(tokens={"hf_writer": "write"}) as server:
        server.inject(Fault("POST", r"/commit/", status=500, times=2))
        ...  # HfApi(endpoint=server.url, token="hf_writer")
        server.requests  # what was asked, in order

Only what huggingface_hub calls for model repositories is there; anything else is answered with 404 and recorded in
`requests`. LFS objects are served from a second port, as the real Hub serves them from another origin; a request that
carries the token there is answered with 400. Xet is not offered: set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.servers.faults import Fault, Handler, Listener, Refusal, Request, State

__all__ = ["Blob", "Commit", "Fault", "HubServer", "Repository", "Request"]

LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
LFS_BYTES = 10_000_000
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """A file of a commit: in git itself, or in LFS under its sha256."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What git calls the file: sha1 over its header and what git keeps."""
        kept = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, Blob]


class Repository:
    """Commits, the branch main, and tags."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.tags: dict[str, str] = {}
        self.main = self.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit")

    def commit(self, tree: dict[str, Blob], title: str) -> str:
        parent = self.main if self.commits else None
        names = sorted((name, blob.oid) for name, blob in tree.items())
        oid = hashlib.sha1(repr((parent, title, names, len(self.commits))).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, tree)
        self.main = oid
        return oid

    def resolve(self, revision: str) -> Commit | None:
        oid = self.main if revision == "main" else self.tags.get(revision, revision)
        return self.commits.get(oid)


class HubServer(State):
    """The state, its two ports, and the faults; `tokens` maps a token to the right it gives, `read` or `write`."""

    def __init__(self, tokens: dict[str, str]) -> None:
        super().__init__()
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self._listeners = [Listener(self, _Handler, "api"), Listener(self, _Handler, "storage")]

    @property
    def url(self) -> str:
        return self._listeners[0].url

    @property
    def storage_url(self) -> str:
        return self._listeners[1].url

    def __enter__(self) -> HubServer:
        for listener in self._listeners:
            listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        for listener in self._listeners:
            listener.stop()


Route = Callable[["_Handler", re.Match[str]], None]
ROUTES: list[tuple[str, str, re.Pattern[str], Route]] = []


def route(method: str, pattern: str, role: str = "api") -> Callable[[Route], Route]:
    """Register a method of the handler for a path."""

    def register(function: Route) -> Route:
        ROUTES.append((role, method, re.compile(pattern), function))
        return function

    return register


_REPO = r"(?P<repo>[^/]+/[^/]+?)"


class _Handler(Handler):
    server: Listener

    def who(self) -> str | None:
        bearer = self.headers.get("Authorization")
        return bearer.removeprefix("Bearer ") if bearer else None

    def carry_out(self) -> None:
        for role, method, pattern, function in ROUTES:
            match = pattern.fullmatch(self.path)
            if match and role == self.server.role and method == self.command.replace("HEAD", "GET"):
                with self.server.hub.lock:
                    return function(self, match)
        raise Refusal(404, "NotFound", f"no route {self.path}")

    def refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal), **refusal.headers}
        self.send({"error": str(refusal)}, refusal.status, headers)

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """The bytes asked for: all of them, or from `Range: bytes=N-` on."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return self.send(content, 200, headers)
        start, size = int(asked[1]), len(content)
        if start >= size:
            raise Refusal(416, "Range", "nothing there", {"Content-Range": f"bytes */{size}"})
        return self.send(content[start:], 206, headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"})

    # -- rights

    def repository(self, match: re.Match[str], write: bool = False) -> Repository:
        """The repository of the path, if the token may do this with it."""
        right = self._right()
        found = self.server.hub.repositories.get(match["repo"])
        if found is None or (found.private and right is None):
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if write:
            self.require_write()
        return found

    def require_write(self) -> None:
        right = self._right()
        if right is None:
            raise Refusal(401, "Unauthorized", "Invalid username or password.")
        if right != "write":
            raise Refusal(403, "Forbidden", "you need write access for this")

    def _right(self) -> str | None:
        if self.token is None:
            return None
        if self.token not in self.server.hub.tokens:
            # the real Hub does not repeat the token; a proxy may
            raise Refusal(401, "Unauthorized", f"Invalid credentials in Authorization header: {self.token}")
        return self.server.hub.tokens[self.token]

    def json(self) -> Any:
        return json.loads(self.raw)

    # -- the Hub's routes

    @route("POST", "/api/repos/create")
    def create(self, match: re.Match[str]) -> None:
        self.require_write()
        asked = self.json()
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.hub.url}/{name}"
        if name in self.server.hub.repositories:
            raise Refusal(409, "Conflict", "You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.hub.repositories[name] = Repository(private=bool(private))
        self.send({"url": url, "name": name})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, match: re.Match[str]) -> None:
        content = self.json()["content"]
        warnings = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send({"errors": [], "warnings": warnings})

    @route("GET", f"/api/models/{_REPO}/refs")
    def refs(self, match: re.Match[str]) -> None:
        repository = self.repository(match)
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.main}
        self.send({"branches": [main], "tags": tags, "converts": []})

    @route("GET", f"/api/models/{_REPO}/revision/(?P<revision>[^/]+)")
    def revision(self, match: re.Match[str]) -> None:
        commit = self.commit_of(self.repository(match), match)
        siblings = [{"rfilename": name} for name in sorted(commit.tree)]
        self.send({"_id": "0", "id": match["repo"], "sha": commit.oid, "lastModified": DATE, "siblings": siblings})

    @route("GET", f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)")
    def tree(self, match: re.Match[str]) -> None:
        commit = self.commit_of(self.repository(match), match)
        self.send([_entry(name, blob) for name, blob in sorted(commit.tree.items())])

    @route("POST", f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)")
    def preupload(self, match: re.Match[str]) -> None:
        held = self.commit_of(self.repository(match, write=True), match).tree
        self.send({"files": [_upload_mode(file, held.get(file["path"])) for file in self.json()["files"]]})

    @route("POST", rf"/{_REPO}\.git/info/lfs/objects/batch")
    def batch(self, match: re.Match[str]) -> None:
        self.repository(match, write=True)
        hub = self.server.hub
        objects = []
        for item in self.json()["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in hub.objects:
                href = f"{hub.storage_url}/objects/{item['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{hub.url}/verify"}}
            objects.append(answer)
        self.send({"transfer": "basic", "objects": objects})

    @route("POST", "/verify")
    def verify(self, match: re.Match[str]) -> None:
        if self.json()["oid"] not in self.server.hub.objects:
            raise Refusal(404, "NotFound", "no such object")
        self.send({})

    @route("POST", f"/api/models/{_REPO}/commit/main")
    def commit(self, match: re.Match[str]) -> None:
        repository = self.repository(match, write=True)
        lines = [json.loads(line) for line in self.raw.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repository.main):
            raise Refusal(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        tree = dict(repository.commits[repository.main].tree)
        for line in lines:
            self.apply(tree, line["key"], line["value"])
        oid = repository.commit(tree, header["summary"])
        url = f"{self.server.hub.url}/{match['repo']}/commit/{oid}"
        self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def apply(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            tree[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.server.hub.objects:
                raise Refusal(400, "BadRequest", "LFS pointer pointed to a file that does not exist")
            tree[value["path"]] = Blob(self.server.hub.objects[value["oid"]], lfs=True)
        elif key != "header":
            raise Refusal(400, "BadRequest", f"{key} is not understood here")

    @route("POST", f"/api/models/{_REPO}/tag/(?P<revision>[^/]+)")
    def tag(self, match: re.Match[str]) -> None:
        repository = self.repository(match, write=True)
        commit = self.commit_of(repository, match)
        name = self.json()["tag"]
        if name in repository.tags:
            raise Refusal(409, "Conflict", "Tag reference exists already")
        repository.tags[name] = commit.oid
        self.send({}, 201)

    @route("GET", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
    def resolve(self, match: re.Match[str]) -> None:
        commit = self.commit_of(self.repository(match), match)
        blob = commit.tree.get(urllib.parse.unquote(match["file"]))
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self.send_file(blob.content, headers | {"ETag": f'"{blob.oid}"'})
        headers |= {"ETag": f'"{blob.sha256}"', "X-Linked-ETag": f'"{blob.sha256}"'}
        headers |= {"X-Linked-Size": str(len(blob.content))}
        headers |= {"Location": f"{self.server.hub.storage_url}/objects/{blob.sha256}"}
        return self.send(b"", 302, headers)

    # -- the other origin

    @route("PUT", "/objects/(?P<oid>[0-9a-f]{64})", role="storage")
    def put_object(self, match: re.Match[str]) -> None:
        if hashlib.sha256(self.raw).hexdigest() != match["oid"]:
            raise Refusal(400, "BadDigest", "sha256 mismatch")
        self.server.hub.objects[match["oid"]] = self.raw
        self.send(b"")

    @route("GET", "/objects/(?P<oid>[0-9a-f]{64})", role="storage")
    def get_object(self, match: re.Match[str]) -> None:
        if self.token is not None:
            raise Refusal(400, "TokenLeak", "the token does not belong here")
        content = self.server.hub.objects.get(match["oid"])
        if content is None:
            raise Refusal(404, "EntryNotFound", "no such object")
        self.send_file(content, {"ETag": f'"{match["oid"]}"', "Accept-Ranges": "bytes"})

    def commit_of(self, repository: Repository, match: re.Match[str]) -> Commit:
        revision = urllib.parse.unquote(match["revision"])
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def _entry(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": name}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry


def _upload_mode(file: dict[str, Any], held: Blob | None) -> dict[str, Any]:
    """How the client is to send a file, and what is there already: sha256 in LFS, the git oid otherwise."""
    lfs = file["size"] > LFS_BYTES or file["path"].endswith(LFS_SUFFIXES)
    answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
    if held:
        answer["oid"] = held.sha256 if held.lfs else held.oid
    return answer
