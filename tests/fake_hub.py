"""A Hugging Face Hub of a few endpoints: what an upload over HTTP asks for (repositories, preupload, LFS, commit)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "t0ken" * 7
MODELS = {"there": (200, ""), "gguf": (404, "EntryNotFound"), "gated": (403, "GatedRepo")}
"""Of `me`: status and error code of a look at their config.json."""


@dataclass
class Hub:
    """What has been uploaded. Only TOKEN is let in."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Repository -> whether it is private."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> content."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by their sha256."""
    commits: int = 0
    role: str = "write"
    """Of the token."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        match method, path.strip("/").split("/"):
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case "HEAD", ["me", name, "resolve", "main", "config.json"]:
                return MODELS.get(name, (404, "RepoNotFound"))
            case "GET", ["api", "whoami-v2"]:
                return 200, {"name": "me", "auth": {"accessToken": {"role": self.role}}}
            case "POST", ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                return 200, {"files": [self._mode(f"{owner}/{name}", file) for file in json.loads(body)["files"]]}
            case "POST", [_, _, "info", "lfs", "objects", "batch"]:
                wanted = json.loads(body)["objects"]
                upload = {one["oid"]: {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}} for one in wanted}
                return 200, {"transfer": "basic", "objects": [{**one, "actions": upload[one["oid"]]} for one in wanted]}
            case "PUT", ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.objects[oid] = body
                return 200, {}
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                return self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case "GET", ["api", "models", owner, name, *_]:
                return 200, {"id": f"{owner}/{name}", "sha": f"{self.commits:040x}"}
        return 404, {"error": f"{method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        known = repo in self.files
        self.files.setdefault(repo, {})
        self.private.setdefault(repo, asked.get("visibility") == "private")
        return (409 if known else 200), {"url": f"{self.url}/{repo}", "name": repo}

    def _mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
        content = self.files[repo].get(file["path"])
        oid = None
        if content is not None:
            lfs, git = hashlib.sha256(content), hashlib.sha1(b"blob %d\0" % len(content) + content)
            oid = (lfs if mode == "lfs" else git).hexdigest()
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.objects[value["oid"]]
        self.commits += 1
        oid = f"{self.commits:040x}"
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            let_in = self.path.startswith("/lfs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            path = self.path.partition("?")[0]
            status, content = state.answer(self.command, path, body) if let_in else (401, {"error": "Invalid token"})
            answer = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            if self.command == "HEAD":
                self.send_header("ETag", "1")
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("X-Error-Code" if let_in else "X-Ignored", str(content))
                self.send_header("X-Error-Message", "" if let_in else "Invalid credentials in Authorization header")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_HEAD = _respond

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
