"""A hub on this machine that takes repositories, commits and large files, and gives them back.

It speaks as much of the Hugging Face Hub's HTTP as its library needs to push and to pull: repository
creation, the question how to upload, commits as lines of JSON, large files by the LFS protocol.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=lambda: [("0" * 40, {})])

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass(frozen=True)
class Request:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hub:
    """What the stand-in has, how it misbehaves, and what it was asked."""

    address: str = ""
    token: str | None = "hf_right"  # who sends it may do everything, who does not may read what is public
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    large_suffixes: tuple[str, ...] = (".safetensors",)
    fails: dict[str, int] = field(default_factory=dict)  # status of requests whose line has this in it
    damaged: bytes | None = None  # served in place of every file
    cut: bool = False  # connections end half way through a file
    requests: list[Request] = field(default_factory=list)

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name].commits[-1][1]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, value: Any = None, **headers: str) -> None:
            body = (
                value if isinstance(value, bytes) else json.dumps(value if value is not None else {}).encode()
            )
            self.send_response(status)
            for name, text in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                half = hub.cut and "/resolve/" in self.path
                self.wfile.write(body[: len(body) // 2] if half else body)
                self.close_connection = half

        def refuse(self, status: int, code: str) -> None:
            self.answer(status, X_Error_Code=code, X_Error_Message=f"the stand-in says {code}")

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self.chunks()
            line = f"{self.command} {path}"
            hub.requests.append(Request(line, {k.lower(): v for k, v in self.headers.items()}, body))
            for part, status in hub.fails.items():
                if part in line:
                    return self.answer(status, {"error": "no"})
            known = hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}"
            if self.command in ("POST",) and path != "/api/validate-yaml" and not known:
                return self.answer(401, {"error": "Invalid username or password."})
            self.dispatch(path, body, known)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def dispatch(self, path: str, body: bytes, known: bool) -> None:
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif parts[0] == "lfs":
                hub.large_files[parts[1]] = body
                self.answer(200)
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {**wanted, "actions": {"upload": {"href": f"{hub.address}/lfs/{wanted['oid']}"}}}
                    for wanted in json.loads(body)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            else:
                name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
                repository = hub.repositories.get(name)
                if repository is None or (repository.private and not known):
                    return self.refuse(404 if known else 401, "RepoNotFound")
                self.in_repository(repository, name, parts[4:] if parts[0] == "api" else parts[2:], body)

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                return self.answer(409, {"error": "You already created this model repo"})
            hub.repositories[name] = Repository(
                private=asked.get("visibility") == "private" or bool(asked.get("private"))
            )
            self.answer(200, {"url": f"{hub.address}/{name}", "name": name})

        def in_repository(self, repository: Repository, name: str, rest: list[str], body: bytes) -> None:
            match rest:
                case ["preupload", _]:
                    files = [
                        {"path": f["path"], "uploadMode": self.mode(f["path"]), "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                    self.answer(200, {"files": files})
                case ["commit", _]:
                    self.commit(repository, name, body)
                case [] | ["revision", _]:
                    self.information(repository, name, rest[1] if rest else "main")
                case ["resolve", revision, file]:
                    self.file(repository, revision, file)
                case _:
                    self.refuse(404, "EntryNotFound")

        def mode(self, path: str) -> str:
            return "lfs" if path.endswith(hub.large_suffixes) else "regular"

        def commit(self, repository: Repository, name: str, body: bytes) -> None:
            files = dict(repository.commits[-1][1])
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if value.get("parentCommit", repository.commits[-1][0]) != repository.commits[-1][0]:
                    return self.answer(412, {"error": "A commit has happened since."})
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.large_files[value["oid"]]
            oid = hashlib.sha1(body).hexdigest()
            repository.commits.append((oid, files))
            self.answer(
                200,
                {"commitUrl": f"{hub.address}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None},
            )

        def information(self, repository: Repository, name: str, revision: str) -> None:
            commit = repository.at(revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound")
            siblings = []
            for path, content in commit[1].items():
                entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": "0" * 40}
                if self.mode(path) == "lfs":
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
                siblings.append(entry)
            facts = {"id": name, "sha": commit[0], "siblings": siblings, "private": repository.private}
            self.answer(200, {**facts, "tags": [], "downloads": 0})

        def file(self, repository: Repository, revision: str, name: str) -> None:
            commit = repository.at(revision)
            if commit is None or name not in commit[1]:
                return self.refuse(404, "EntryNotFound" if commit else "RevisionNotFound")
            content = commit[1][name]
            headers = {"ETag": f'"{sha256(content)}"', "X_Repo_Commit": commit[0]}
            self.answer(200, content if hub.damaged is None else hub.damaged, **headers)

    return Handler


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """An empty hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
