"""A stand-in of the hub's API: what huggingface_hub asks for when a folder is uploaded, by HTTP on this machine.

Written after the client's own requests (huggingface_hub 2.4: `whoami`, `model_info`, `list_repo_tree`, `create_repo`,
`create_commit` with large files by git LFS).
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READ_ONLY, NARROW = "hf_may_write", "hf_may_read", "hf_may_write_there"
ROLES: dict[str, dict[str, Any]] = {
    TOKEN: {"role": "write"},
    READ_ONLY: {"role": "read"},
    NARROW: {
        "role": "fineGrained",
        "fineGrained": {"scoped": [{"entity": {"name": "org"}, "permissions": ["repo.content.read", "repo.write"]}]},
    },
}
LARGE = (".safetensors", ".gguf")


class Hub:
    """Its repositories, what it was sent, and what it refuses."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.stored: dict[str, bytes] = {}
        """SHA-256 -> a large file that was sent."""
        self.sent: list[str] = []
        """SHA-256 of each large file, in the order in which they came."""
        self.asked: list[str] = []
        self.breaks_after: int | None = None
        """Large files that are taken before the upload breaks."""
        self.spoils = False
        """Whether it keeps other bytes than it was sent."""
        self.status: dict[str, int] = {}
        """Part of an address -> the error that it is answered with."""

    def answer(self, verb: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{verb} {path}")
        for part, status in self.status.items():
            if part in path:
                return status, {"error": "refused by the stand-in"}
        parts = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            if token not in ROLES:
                return 401, {"error": "Invalid user token"}
            orgs = [{"name": "org", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
            return 200, {"type": "user", "name": "me", "orgs": orgs, "auth": {"accessToken": ROLES[token]}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization'] or 'me'}/{asked['name']}"
            self.repos.setdefault(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.private.setdefault(repo, asked.get("visibility") == "private")
            return 200, {"url": f"{self.address}/{repo}", "id": repo, "name": repo}
        if parts[0] == "store":
            return self.store(parts[1], body)
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2]).removesuffix(".git")
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if parts[0] != "api":
            return 200, {"transfer": "basic", "objects": [self.place_of(each) for each in json.loads(body)["objects"]]}
        return self.repository(repo, parts[4] if len(parts) > 4 else "", body)

    def repository(self, repo: str, what: str, body: bytes) -> tuple[int, Any]:
        files = self.repos[repo]
        if what == "preupload":
            return 200, {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": blob_of(files[file["path"]]) if file["path"] in files else None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        if what == "tree":
            return 200, [entry(path, content) for path, content in sorted(files.items())]
        if what == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            return 200, {"commitUrl": f"{self.address}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 200, {"id": repo, "modelId": repo, "private": self.private[repo], "siblings": [], "tags": []}

    def place_of(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.stored:
            return found
        return found | {"actions": {"upload": {"href": f"{self.address}/store/{asked['oid']}", "header": {}}}}

    def store(self, oid: str, body: bytes) -> tuple[int, Any]:
        if self.breaks_after is not None and len(self.sent) >= self.breaks_after:
            return 400, {"error": "the line broke"}
        assert hashlib.sha256(body).hexdigest() == oid
        self.stored[oid] = body[:-1] + b"?" if self.spoils else body
        self.sent.append(oid)
        return 200, {}

    address = ""


def blob_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found = {"type": "file", "path": path, "size": len(content), "oid": blob_of(content)}
    if path.endswith(LARGE):
        found["lfs"] = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return found


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answered(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, found = hub.answer(self.command, self.path.split("?")[0], token, body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answered

        def log_message(self, *words: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
