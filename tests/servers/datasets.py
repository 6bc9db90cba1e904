"""Dataset repositories for the test Hub (hub.py): what `datasets` and range readers ask of one, over real sockets.

    with HubServer(tokens={}) as server:
        commit = add_dataset(server, "org/corpus", folder)   # README.md and Parquet files, as they lie there

Files ending in .parquet lie on the second port, as LFS files of the real Hub lie on another origin.
"""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from tests.servers.hub import DATE, Blob, Commit, HubServer, Refusal, Repository, _entry, _Handler, route

PREFIX = "datasets/"  # in the server's dictionary, so that a model of the same name is another repository
_REPO = r"(?P<repo>[^/]+/[^/]+?)"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def add_dataset(server: HubServer, name: str, folder: Path) -> str:
    """A dataset repository with the files of `folder`; the hash of its commit."""
    tree = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = Blob(path.read_bytes(), lfs=path.suffix == ".parquet")
        tree[path.relative_to(folder).as_posix()] = blob
        if blob.lfs:
            server.objects[blob.sha256] = blob.content
    repository = Repository(private=False)
    commit = repository.commit(tree, "corpus")
    server.repositories[PREFIX + name] = repository
    return commit


def _commit(handler: _Handler, match: re.Match[str]) -> Commit:
    found = handler.server.hub.repositories.get(PREFIX + match["repo"])
    if found is None:
        raise Refusal(404, "RepoNotFound", "Repository not found")
    revision = match.groupdict().get("revision") or "main"
    commit = found.resolve(urllib.parse.unquote(revision))
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


@route("GET", f"/api/datasets/{_REPO}")
@route("GET", f"/api/datasets/{_REPO}/revision/(?P<revision>[^/]+)")
def dataset_info(handler: _Handler, match: re.Match[str]) -> None:
    commit = _commit(handler, match)
    siblings = [{"rfilename": name} for name in sorted(commit.tree)]
    handler.send(
        {"_id": "0", "id": match["repo"], "sha": commit.oid, "lastModified": DATE, "siblings": siblings, "tags": []}
    )


@route("GET", f"/api/datasets/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def dataset_tree(handler: _Handler, match: re.Match[str]) -> None:
    commit = _commit(handler, match)
    below = urllib.parse.unquote(match["folder"] or "")
    inside = {n: b for n, b in commit.tree.items() if not below or n.startswith(below + "/")}
    if below and not inside:
        raise Refusal(404, "EntryNotFound", f"{below} does not exist on {commit.oid}")
    deep = "recursive=true" in handler.query.lower()
    entries, folders = [], set()
    for name, blob in sorted(inside.items()):
        rest = name[len(below) + 1 :] if below else name
        if deep or "/" not in rest:
            entries.append(_entry(name, blob))
        parents = [rest.rsplit("/", i)[0] for i in range(1, rest.count("/") + 1)]
        folders |= {f"{below}/{p}" if below else p for p in (parents if deep else parents[-1:])}
    handler.send([{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in sorted(folders)] + entries)


@route("POST", f"/api/datasets/{_REPO}/paths-info/(?P<revision>[^/]+)")
def dataset_paths(handler: _Handler, match: re.Match[str]) -> None:
    commit = _commit(handler, match)
    form = urllib.parse.parse_qs(handler.raw.decode())
    asked = form["paths"] if "paths" in form else handler.json()["paths"]
    found = [_entry(name, commit.tree[name]) for name in asked if name in commit.tree]
    folders = [p for p in asked if p not in commit.tree and any(n.startswith(f"{p}/") for n in commit.tree)]
    handler.send(found + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": p} for p in folders])


@route("GET", f"/datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
def dataset_file(handler: _Handler, match: re.Match[str]) -> None:
    commit = _commit(handler, match)
    blob = commit.tree.get(urllib.parse.unquote(match["file"]))
    if blob is None:
        raise Refusal(404, "EntryNotFound", "Entry not found")
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not blob.lfs:
        return send_range(handler, blob.content, headers | {"ETag": f'"{blob.oid}"'})
    headers |= {"ETag": f'"{blob.sha256}"', "X-Linked-ETag": f'"{blob.sha256}"'}
    headers |= {"X-Linked-Size": str(len(blob.content))}
    headers |= {"Location": f"{handler.server.hub.storage_url}/stored/{blob.sha256}"}
    return handler.send(b"", 302, headers)


@route("GET", "/stored/(?P<oid>[0-9a-f]{64})", role="storage")
def stored(handler: _Handler, match: re.Match[str]) -> None:
    """As hub.py's objects, with ranges that have an end."""
    if handler.token is not None:
        raise Refusal(400, "TokenLeak", "the token does not belong here")
    content = handler.server.hub.objects.get(match["oid"])
    if content is None:
        raise Refusal(404, "EntryNotFound", "no such object")
    send_range(handler, content, {"ETag": f'"{match["oid"]}"', "Accept-Ranges": "bytes"})


def send_range(handler: _Handler, content: bytes, headers: dict[str, str]) -> None:
    """The bytes that `Range: bytes=A-B`, `A-` or `-N` asks for; all without it (RFC 9110, 14.1.2)."""
    asked = _RANGE.fullmatch(handler.headers.get("Range", ""))
    if not asked:
        return handler.send(content, 200, headers)
    size = len(content)
    first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first >= size:
        raise Refusal(416, "Range", "nothing there", {"Content-Range": f"bytes */{size}"})
    return handler.send(content[first : last + 1], 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})
