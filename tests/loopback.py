"""A model hub on the loopback interface: the part of the Hugging Face hub's HTTP protocol that downloads need.

`Hub` serves local folders as revisions of repositories, records every request and makes faults on demand. The fixture
`hub` (import `hub_fixture` to have it) starts one and points huggingface_hub at it, with an empty cache and no token.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session

#: Opens private and gated repositories.
TOKEN = "hf_loopback"

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
_API = re.compile(rf"/api/models/{_REPO}(?:/(?P<what>revision|refs|tree)(?:/(?P<revision>[^/]+))?)?")
_FILE = re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_LFS = (".safetensors", ".bin", ".gguf")


class Request(NamedTuple):
    """What a client asked for: the path is as sent, without the query."""

    method: str
    path: str


@dataclass
class Repo:
    """Commits never change; branches point to them."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass
class Fault:
    """What to do to requests whose "METHOD path" contains `match`; `times` counts down, None is for ever."""

    match: str
    method: str = ""
    times: int | None = None
    status: int | None = None
    cut: int | None = None
    reset: bool = False
    delay: float = 0.0
    at: int = 0
    damage: bytes = b""
    pace: tuple[int, float] | None = None


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Hub:
    """Repositories, faults and the server. Not started by itself: call `start`, or use the fixture."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    # Content

    def add(
        self,
        repo: str,
        revisions: Mapping[str, Path],
        *,
        main: str | None = None,
        salt: str = "",
        private: bool = False,
        gated: bool = False,
    ) -> None:
        """Serve each folder as a branch; `main` is the last of them unless named. A gated repository can be listed."""
        self.repos[repo] = Repo(private=private, gated=gated)
        for branch, folder in revisions.items():
            self.move(repo, branch, folder, salt)
        branches = self.repos[repo].branches
        branches.setdefault("main", branches[main if main is not None else list(revisions)[-1]])

    def move(self, repo: str, branch: str, folder: Path, salt: str = "") -> str:
        """Point a branch at the content of a folder and return the commit. Another salt gives another commit."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        commit = hashlib.sha1(salt.encode())
        for name, content in files.items():
            commit.update(f"{name}\0{len(content)}\0".encode() + content)
        self.repos[repo].commits[commit.hexdigest()] = files
        self.repos[repo].branches[branch] = commit.hexdigest()
        return commit.hexdigest()

    def commit(self, repo: str, branch: str = "main") -> str:
        return self.repos[repo].branches[branch]

    # Faults

    def fail(self, match: str, times: int = 1, status: int = 500) -> None:
        """Answer the next requests with an error."""
        self._faults.append(Fault(match, times=times, status=status))

    def cut(self, file: str, after: int, times: int = 1, *, reset: bool = False) -> None:
        """Close the connection after `after` bytes of a file; `reset` does it with a TCP reset."""
        self._faults.append(Fault(f"/{file}", "GET", times, cut=after, reset=reset))

    def slow(self, match: str, seconds: float, times: int | None = None) -> None:
        """Wait before answering."""
        self._faults.append(Fault(match, times=times, delay=seconds))

    def trickle(self, file: str, bytes_at_a_time: int, seconds: float) -> None:
        """Send a file in pieces, with a pause before each."""
        self._faults.append(Fault(f"/{file}", "GET", pace=(bytes_at_a_time, seconds)))

    def corrupt(self, file: str, at: int, damage: bytes) -> None:
        """Serve a file with other bytes at an offset, under the size and hash of the sound one."""
        self._faults.append(Fault(f"/{file}", "GET", at=at, damage=damage))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    # What was asked

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        matches = [_FILE.fullmatch(r.path) for r in list(self.requests) if r.method == "GET"]
        return [unquote(match["file"]) for match in matches if match]

    def asked(self, match: str) -> list[Request]:
        return [r for r in list(self.requests) if match in f"{r.method} {r.path}"]

    # Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._stopping.clear()
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name="loopback hub").start()

    def stop(self) -> None:
        """Refuse connections from now on. Can be started again."""
        if self._server is not None:
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables that point a new process at this hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache.parent / "hf-home"),
            "HF_HUB_CACHE": str(cache),
            "HUGGINGFACE_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache.parent / "no-token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def wait(self, seconds: float) -> None:
        """A pause that a stop ends."""
        self._stopping.wait(seconds)

    # Answers

    def answer(self, request: Request, query: str, headers: Mapping[str, str]) -> tuple[Answer, list[Fault]]:
        """The answer, with the faults that the connection still has to suffer."""
        with self._lock:
            self.requests.append(request)
            line = f"{request.method} {request.path}"
            faults = [f for f in self._faults if f.times != 0 and f.match in line and f.method in ("", request.method)]
            for fault in faults:
                if fault.times is not None:
                    fault.times -= 1
        if delay := sum(f.delay for f in faults):
            self.wait(delay)
        for fault in faults:
            if fault.status is not None:
                return _refuse(fault.status, "", "out of order"), faults
        if match := _API.fullmatch(request.path):
            return self._api(match, "blobs" in parse_qs(query), headers), faults
        if match := _FILE.fullmatch(request.path):
            return self._file(match, headers, faults), faults
        return _refuse(404, "", f"no such address: {request.path}"), faults

    def _api(self, match: re.Match[str], blobs: bool, headers: Mapping[str, str]) -> Answer:
        name, what = unquote(match["repo"]), match["what"]
        if (repo := self._visible(name, headers)) is None:
            return _refuse(404, "RepoNotFound", "Repository not found")
        if what == "refs":
            branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": c} for b, c in repo.branches.items()]
            return _json({"branches": branches, "tags": [], "converts": []})
        revision = unquote(match["revision"] or "main")
        if (commit := _resolve(repo, revision)) is None:
            return _refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if what == "tree":
            return _json([_tree_entry(path, content) for path, content in files.items()])
        siblings = [_sibling(path, content) if blobs else {"rfilename": path} for path, content in files.items()]
        return _json(
            {
                "_id": commit[:24],
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def _file(self, match: re.Match[str], headers: Mapping[str, str], faults: list[Fault]) -> Answer:
        repo, path = self._visible(unquote(match["repo"]), headers), unquote(match["file"])
        if repo is None:
            return _refuse(404, "RepoNotFound", "Repository not found")
        if repo.gated and not _authorized(headers):
            return _refuse(401, "GatedRepo", "Access to this model is restricted: you must be authenticated")
        if (commit := _resolve(repo, unquote(match["revision"]))) is None:
            return _refuse(404, "RevisionNotFound", "Invalid rev id")
        if (content := repo.commits[commit].get(path)) is None:
            return _refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        about = {
            "X-Repo-Commit": commit,
            "ETag": f'"{_git_sha1(content)}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if path.endswith(_LFS):
            about |= {
                "X-Linked-Etag": f'"{_sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "ETag": f'"{_sha256(content)}"',
            }
        for fault in faults:
            if fault.damage:
                content = content[: fault.at] + fault.damage + content[fault.at + len(fault.damage) :]
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))):
            return Answer(200, about, content)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return Answer(416, about | {"Content-Range": f"bytes */{len(content)}"}, b"")
        return Answer(206, about | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1])

    def _visible(self, name: str, headers: Mapping[str, str]) -> Repo | None:
        """The repository, unless it is private to the client: the hub does not tell that from one that is not."""
        repo = self.repos.get(name)
        return None if repo is None or (repo.private and not _authorized(headers)) else repo


def _authorized(headers: Mapping[str, str]) -> bool:
    return headers.get("Authorization") == f"Bearer {TOKEN}"


def _resolve(repo: Repo, revision: str) -> str | None:
    return repo.branches.get(revision) or (revision if revision in repo.commits else None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(content: bytes) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(content)}\nsize {len(content)}\n"
    return text.encode()


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    """A file as `model_info` lists it: git knows only the pointer of a large one."""
    if not path.endswith(_LFS):
        return {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
    pointer = _pointer(content)
    lfs = {"sha256": _sha256(content), "size": len(content), "pointerSize": len(pointer)}
    return {"rfilename": path, "size": len(content), "blobId": _git_sha1(pointer), "lfs": lfs}


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    """The same file as the tree lists it, with other names for the same facts."""
    if not path.endswith(_LFS):
        return {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    pointer = _pointer(content)
    lfs = {"oid": _sha256(content), "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(pointer), "lfs": lfs}


def _json(value: Any) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _refuse(status: int, code: str, message: str, more: Mapping[str, str] | None = None) -> Answer:
    headers = {"Content-Type": "application/json", "X-Error-Message": message, **(more or {})}
    if code:
        headers["X-Error-Code"] = code
    return Answer(status, headers, json.dumps({"error": message}).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):  # a client may hang up
            self.hub.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _respond(self) -> None:
        assert isinstance(self.server, _Server)
        url = urlsplit(self.path)
        (status, headers, body), faults = self.server.hub.answer(
            Request(self.command, url.path), url.query, self.headers
        )  # type: ignore[arg-type]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # so that a stopped hub has no connection left to answer on
        self.end_headers()
        if self.command == "HEAD":
            return
        for fault in faults:
            if fault.cut is not None:
                self.wfile.write(body[: fault.cut])
                self.wfile.flush()
                if fault.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                return
            if fault.pace is not None:
                size, seconds = fault.pace
                for start in range(0, len(body), size):
                    self.server.hub.wait(seconds)
                    self.wfile.write(body[start : start + size])
                return
        self.wfile.write(body)


def connect(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub at `hub`. It reads the environment when imported, so its constants are set as well,
    wherever a module has copied them."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.environment(cache).items():
        monkeypatch.setenv(name, value)
    home = cache.parent / "hf-home"
    constants: dict[str, Any] = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(cache),
        "HUGGINGFACE_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": os.environ["HF_TOKEN_PATH"],
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "huggingface_hub":
            for constant in constants.keys() & vars(module).keys():
                monkeypatch.setattr(module, constant, constants[constant])
    close_session()  # the next one is made with NO_PROXY


@pytest.fixture(name="hub")
def hub_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that huggingface_hub takes for the only one, with an empty cache in the test's folder."""
    served = Hub()
    served.start()
    connect(served, tmp_path / "hub-cache", monkeypatch)
    yield served
    served.stop()
    close_session()
    assert not served.errors, served.errors
