"""A Hub on localhost for tests: the real `huggingface_hub` client and `datasets` talk to it over HTTP.

    with HubServer() as hub:
        hub.patch(monkeypatch, tmp_path)     # this process talks to it; `hub.environ(tmp_path)` is for others
        ds.push_to_hub("user/name", token=hub.token)
        hub.files("user/name"), hub.commits("user/name"), hub.requests
        hub.fail("/commit/", times=2, status=503)

It stores everything in memory (a model is read as a dataset is), speaks the LFS protocol and not Xet: `hf_xet` uploads
through a compiled client with a protocol of its own, so `HF_HUB_DISABLE_XET` is set and the client takes its plain
LFS path. Writing needs the token; reading does not. What the client sends is recorded in `requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# for `pytest.mark.filterwarnings`: huggingface_hub 2.4 uploads with an argument that its own httpx2 calls old
IGNORED = "ignore:Use 'content=:DeprecationWarning"
FAULTS = ("drop", "lost", "half", "slow")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int | str = 0


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, title: str, files: dict[str, bytes], parent: str | None) -> Commit:
        seed = json.dumps([parent, title, len(self.commits), sorted(files)]).encode()
        commit = Commit(hashlib.sha1(seed).hexdigest(), parent, title, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))


@dataclass
class Fault:
    pattern: str
    left: int
    kind: int | str
    method: str | None
    after: int
    headers: dict[str, str]
    seconds: float


class HubServer:
    """See the module."""

    token = "hf_" + "SecretTokenOfTheTests" * 2

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """All files at a branch, pull request or commit."""
        commit = self.repos[repo].at(revision)
        assert commit is not None, f"no revision {revision}"
        return dict(commit.files)

    def commits(self, repo: str, revision: str = "main") -> list[Commit]:
        """History, newest first."""
        found, commit = [], self.repos[repo].at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.repos[repo].commits.get(commit.parent or "")
        return found

    def add(self, repo: str, files: dict[str, bytes | str], title: str = "by hand") -> str:
        """Commit files as somebody else would, making the repo if needed; returns the commit."""
        with self.lock:
            entry = self.repos.setdefault(repo, new_repo())
            head = entry.at("main")
            assert head is not None
            new = {k: v.encode() if isinstance(v, str) else v for k, v in files.items()}
            return entry.add("main", title, {**head.files, **new}, head.oid).oid

    def fail(
        self,
        pattern: str,
        times: int = 1,
        status: int | str = 503,
        *,
        method: str | None = None,
        after: int = 0,
        headers: dict[str, str] | None = None,
        seconds: float = 0.2,
    ) -> None:
        """Let the next `times` requests whose path matches fail, after `after` good ones.

        `status` is an HTTP status, or "drop" (closed before anything happens), "lost" (done, but the answer never
        comes), "half" (the answer breaks off in the middle), "slow" (`seconds` late).
        """
        assert isinstance(status, int) or status in FAULTS
        self.faults.append(Fault(pattern, times, status, method, after, headers or {}, seconds))

    def environ(self, home: str | Path) -> dict[str, str]:
        """Variables of a subprocess that shall talk to this Hub; its caches are under `home`."""
        return {
            **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "0"),
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_DATASETS_CACHE": str(Path(home) / "datasets"),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def patch(self, monkeypatch: Any, home: str | Path) -> None:
        """Point this process at the Hub (both libraries read `HF_ENDPOINT` once, at import)."""
        import datasets
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.utils import _http

        home = Path(home)
        for module, name, value in (
            (constants, "ENDPOINT", self.url),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"),
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_DISABLE_TELEMETRY", True),
            (constants, "HF_HUB_CACHE", str(home / "hub")),
            (constants, "HF_TOKEN_PATH", str(home / "token")),
            (datasets.config, "HF_ENDPOINT", self.url),
            (datasets.config, "HUB_DATASETS_URL", self.url + "/datasets/{repo_id}/resolve/{revision}/{path}"),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HF_DATASETS_CACHE", home / "datasets"),
            (datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads"),
            (datasets.config, "EXTRACTED_DATASETS_PATH", home / "datasets" / "downloads" / "extracted"),
        ):
            monkeypatch.setattr(module, name, value, raising=False)
        # the client's own retries wait whole seconds; what they wait for here is this process
        monkeypatch.setattr(_http, "time", _Hurry())
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.HfFileSystem.clear_instance_cache()


class _Hurry:
    """`time`, but for naps."""

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.02))

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def new_repo(private: bool = False) -> Repo:
    repo = Repo(private=private)
    repo.add("main", "initial commit", {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}, None)
    return repo


def blob_id(content: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return path.endswith((".parquet", ".arrow", ".bin", ".zip")) or size > 10_000_000


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the tree and paths-info calls list it."""
    listed: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_lfs(path, len(content)):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid {hashlib.sha256(content).hexdigest()}\n".encode()
        listed["oid"] = blob_id(pointer)
        listed["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": len(pointer),
        }
    return listed


def folders(paths: Iterable[str]) -> set[str]:
    return {str(parent) for path in paths for parent in Path(path).parents if str(parent) != "."}


class Failure(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer in two packets waits 40 ms for an acknowledgement
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        pass

    # -- the transport ---------------------------------------------------------------

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.left and re.search(fault.pattern, self.path) and fault.method in (None, self.command):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.left -= 1
                    return fault
        return None

    def answer(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()), self.body())
        self.hub.requests.append(request)
        fault = self.fault()
        kind = fault.kind if fault else None
        if kind == "drop":
            request.status = "drop"
            return self.hang_up()
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        headers: dict[str, str] = {}
        if fault and isinstance(kind, int):
            status, content, headers = kind, b'{"error": "injected"}', dict(fault.headers)
        else:
            try:
                with self.hub.lock:
                    status, content, headers = self.route(request)
            except Failure as error:
                status, content = error.status, json.dumps({"error": error.message or error.code}).encode()
                headers = {"X-Error-Code": error.code} if error.code else {}
                headers["X-Error-Message"] = error.message or error.code or "refused"
        request.status = "lost" if kind == "lost" else status
        if kind == "lost":
            return self.hang_up()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if kind == "half" else content)
        if kind == "half":
            self.wfile.flush()
            self.hang_up()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def hang_up(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # -- the calls ---------------------------------------------------------------

    def route(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        writes = request.method in ("POST", "PUT", "DELETE") and not re.search(
            "paths-info|validate-yaml|/lfs/", url.path
        )
        if writes and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise Failure(401, message="Invalid credentials in Authorization header")
        match parts:
            case ["api", "models", *rest]:
                parts = ["api", "datasets", *rest]
            case [_, _, "resolve", *_]:
                parts = ["datasets", *parts]
        match parts:
            case ["api", "whoami-v2"]:
                return reply({"name": "user", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
            case ["api", "validate-yaml"]:
                return reply({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create(json.loads(request.body))
            case ["lfs", oid]:
                if hashlib.sha256(request.body).hexdigest() != oid:
                    raise Failure(400, message="wrong digest")
                self.hub.lfs[oid] = request.body
                return reply({})
            case ["datasets", user, name, "info", "lfs", "objects", "batch"]:
                self.repo(f"{user}/{name.removesuffix('.git')}")
                return self.batch(json.loads(request.body))
            case ["datasets", user, name, "resolve", revision, *path]:
                return self.resolve(f"{user}/{name}", revision, "/".join(path))
            case ["api", "datasets", user, name]:
                return self.info(f"{user}/{name}", "main", query)
            case ["api", "datasets", user, name, "revision", revision]:
                return self.info(f"{user}/{name}", revision, query)
            case ["api", "datasets", user, name, "preupload", revision]:
                return self.preupload(self.at(f"{user}/{name}", revision), json.loads(request.body))
            case ["api", "datasets", user, name, "commit", revision]:
                return self.commit(f"{user}/{name}", revision, request.body, "create_pr" in query)
            case ["api", "datasets", user, name, "tree", revision, *path]:
                return self.tree(self.at(f"{user}/{name}", revision), "/".join(path), query)
            case ["api", "datasets", user, name, "paths-info", revision]:
                return self.paths_info(self.at(f"{user}/{name}", revision), request.body)
            case ["api", "datasets", user, name, "refs"]:
                refs = self.repo(f"{user}/{name}").refs
                named = [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in refs.items()]
                return reply({"branches": named, "converts": [], "tags": [], "pullRequests": []})
            case ["api", "datasets", user, name, "commits", revision]:
                self.at(f"{user}/{name}", revision)
                log = self.hub.commits(f"{user}/{name}", revision)
                shared = {"message": "", "date": DATE, "authors": []}
                return reply([{"id": c.oid, "title": c.title, **shared} for c in log])
            case ["api", "datasets", user, name, "branch", *branch]:
                repo = self.repo(f"{user}/{name}")
                if "/".join(branch) in repo.refs:
                    raise Failure(409, message="Reference already exists")
                repo.refs["/".join(branch)] = repo.refs["main"]
                return reply({})
        raise Failure(404, message=f"this Hub has no {request.method} {url.path}")

    def repo(self, repo_id: str) -> Repo:
        if repo_id not in self.hub.repos:
            raise Failure(404, "RepoNotFound", "Repository not found")
        return self.hub.repos[repo_id]

    def at(self, repo_id: str, revision: str) -> Commit:
        commit = self.repo(repo_id).at(revision)
        if commit is None:
            raise Failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def create(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        made = {"url": f"{self.hub.url}/datasets/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            return 409, json.dumps({"error": "You already created this dataset repo", **made}).encode(), {}
        self.hub.repos[repo_id] = new_repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return reply(made)

    def info(self, repo_id: str, revision: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        commit = self.at(repo_id, revision)
        siblings = []
        for path, content in sorted(commit.files.items()):
            listed = entry(path, content)
            more = {"size": len(content), "blobId": listed["oid"], "lfs": listed.get("lfs")}
            if more["lfs"]:
                more["lfs"] = {"sha256": more["lfs"]["oid"], "size": len(content), "pointerSize": 130}
            siblings.append({"rfilename": path, **(more if "blobs" in query else {})})
        facts = {"id": repo_id, "_id": "0" * 24, "author": repo_id.split("/")[0], "sha": commit.oid}
        facts |= {
            "lastModified": DATE,
            "private": self.hub.repos[repo_id].private,
            "gated": False,
            "disabled": False,
        }
        return reply({**facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def preupload(self, commit: Commit, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        files = []
        for file in asked["files"]:
            lfs, now = is_lfs(file["path"], file["size"]), commit.files.get(file["path"])
            oid = None if now is None else hashlib.sha256(now).hexdigest() if lfs else blob_id(now)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return reply({"files": files})

    def batch(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for item in asked["objects"]:
            listed = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs:
                listed["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            objects.append(listed)
        return reply({"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, revision: str, body: bytes, create_pr: bool) -> tuple[int, bytes, dict[str, str]]:
        repo, head = self.repo(repo_id), self.at(repo_id, revision)
        files, header = dict(head.files), {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Failure(400, message="LFS pointer pointed to a file that does not exist")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {k: v for k, v in files.items() if not k.startswith(value["path"].rstrip("/") + "/")}
        if not create_pr and header.get("parentCommit", head.oid) != head.oid:
            raise Failure(412, message="A commit has happened since. Please refresh and try again.")
        ref, number = revision, sum(r.startswith("refs/pr/") for r in repo.refs) + 1
        if create_pr:
            ref = f"refs/pr/{number}"
        made = repo.add(ref, header["summary"], files, head.oid)
        url = f"{self.hub.url}/datasets/{repo_id}"
        answer = {"success": True, "commitUrl": f"{url}/commit/{made.oid}", "commitOid": made.oid}
        return reply({**answer, "pullRequestUrl": f"{url}/discussions/{number}" if create_pr else None})

    def tree(self, commit: Commit, path: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        prefix = path + "/" if path else ""
        if path and not any(p.startswith(prefix) for p in commit.files):
            raise Failure(404, "EntryNotFound", f"{path} does not exist")
        deep = query.get("recursive", "false").lower() in ("true", "1")
        inside = [p for p in sorted(commit.files) if p.startswith(prefix)]
        found = [directory(p) for p in sorted(folders(inside)) if p.startswith(prefix)]
        found += [entry(p, commit.files[p]) for p in inside]
        return reply([e for e in found if deep or "/" not in e["path"].removeprefix(prefix)])

    def paths_info(self, commit: Commit, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        form = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if form else parse_qs(body.decode()).get("paths", [])
        known = folders(commit.files)
        found = [entry(p, commit.files[p]) for p in paths if p in commit.files]
        return reply(found + [directory(p) for p in paths if p in known])

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self.at(repo_id, revision)
        if path not in commit.files:
            raise Failure(404, "EntryNotFound", f"{path} does not exist")
        content, total = commit.files[path], len(commit.files[path])
        sha = hashlib.sha256(content).hexdigest() if is_lfs(path, total) else blob_id(content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{sha}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Type": "application/octet-stream", "Last-Modified": formatdate(0, usegmt=True)}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
            if first >= total:
                return 416, b"", {**headers, "Content-Range": f"bytes */{total}"}
            return (
                206,
                content[first : last + 1],
                {**headers, "Content-Range": f"bytes {first}-{last}/{total}"},
            )
        return 200, content, headers


def directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())}


def reply(value: object) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {}
