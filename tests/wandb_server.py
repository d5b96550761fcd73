"""A W&B server on 127.0.0.1, which starts runs and takes their data, until it fails in a chosen way.

It answers the requests that wandb-core 0.31 sends for a run with metrics, images, tables and alerts. It is no model of
W&B's own server: it stores nothing, and accepts everything.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST_BYTES = 32 << 20  # of a request
LONGEST = 300.0  # seconds that a request stays unanswered
SLOW = 6.0  # seconds until an answer of a slow server
KEY = "0" * 40

FAULTS = ("refused", "slow", "silent", "cut off", "401", "429", "500", "full")
BODIES = {"401": "permission denied", "429": "rate limit exceeded", "500": "internal error", "full": "storage quota"}
STATUS = {"401": 401, "429": 429, "500": 500, "full": 507}


class LoopbackServer(ThreadingHTTPServer):
    """The server; ``fault`` is one of FAULTS, and applies to each request for which ``is_broken()`` is true."""

    daemon_threads = True

    def __init__(self, fault: str | None = None, is_broken: Callable[[], bool] = lambda: True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.is_broken = fault, is_broken
        self.closing = threading.Event()
        self.requests: list[tuple[str, dict[str, Any]]] = []  # name of each answered request, and its JSON
        self.failed = 0  # requests

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which W&B logs to this server."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_ENTITY": "us", "WANDB_MODE": "online"}

    def sent(self, name: str) -> list[dict[str, Any]]:
        """Return what arrived with a GraphQL operation, or with ``file_stream``."""
        return [content for each, content in self.requests if each == name]

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of metrics that arrived, in their order."""
        sent = [content.get("files", {}).get("wandb-history.jsonl", {}) for content in self.sent("file_stream")]
        return [json.loads(row) for part in sent for row in part.get("content", [])]

    def handle_error(self, request, client_address) -> None:
        """Report nothing: clients that have ended leave broken connections."""


@contextmanager
def loopback_server(**settings: Any) -> Iterator[LoopbackServer]:
    """Serve in threads of this process; at the end, no request waits any longer."""
    server = LoopbackServer(**settings)
    if server.fault == "refused" and server.is_broken():
        server.server_close()
        yield server
        return
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        serving.join(5)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LONGEST
    server: LoopbackServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._read()
        if self._works():
            self._record("upload", {"path": self.path})
            self._answer({})

    def do_POST(self) -> None:
        content = self._read()
        if not self._works():
            return
        if self.path.endswith("/file_stream"):
            self._record("file_stream", content)
            return self._answer({})
        name = content.get("operationName") or _operation(content.get("query", "")) or self.path
        self._record(name, content.get("variables", {}))
        answer = ANSWERS.get(name, lambda variables, server: {})
        self._answer({"data": answer(content.get("variables", {}), self.server)})

    def _record(self, name: str, content: dict[str, Any]) -> None:
        self.server.requests.append((name, content))

    def _read(self) -> Any:
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MOST_BYTES))
        try:
            return json.loads(body)
        except ValueError:
            return {}

    def _works(self) -> bool:
        """Return whether to answer as usual; otherwise fail, if the server is broken by now."""
        fault = self.server.fault
        if not fault or not self.server.is_broken():
            return True
        self.server.failed += 1
        if fault == "refused":
            threading.Thread(target=self.server.shutdown).start()
            self.server.socket.close()
            self.close_connection = True
        elif fault == "slow":
            self.server.closing.wait(SLOW)
            return True
        if fault == "silent":
            self.server.closing.wait(LONGEST)
            self.close_connection = True
        elif fault == "cut off":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            self.close_connection = True
        else:
            headers = {"Retry-After": "3600"} if fault == "429" else {}
            self._answer({"error": BODIES[fault]}, STATUS[fault], headers)
        return False

    def _answer(self, content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def _operation(query: str) -> str:
    """Return the name of a GraphQL operation, which W&B's Python client sends only inside the query."""
    match = re.search(r"^\s*(?:query|mutation)\s+(\w+)", query)
    return match[1] if match else ""


def _run(variables: dict[str, Any], server: LoopbackServer) -> dict[str, Any]:
    project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "us"}}
    bucket = {"id": "r", "name": variables.get("name"), "displayName": variables.get("displayName"), "description": ""}
    bucket |= {"config": "{}", "sweepName": None, "project": project, "historyLineCount": 0}
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


def _uploads(variables: dict[str, Any], server: LoopbackServer) -> dict[str, Any]:
    files = [{"name": name, "uploadUrl": f"{server.address}/upload/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}


def _artifact(variables: dict[str, Any], server: LoopbackServer) -> dict[str, Any]:
    artifact = {"id": f"a{time.monotonic_ns()}", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": artifact}}


VIEWER = {"id": "u", "entity": "us", "username": "us", "email": "us@example.com", "flags": "{}", "teams": {"edges": []}}
ANSWERS: dict[str, Callable[[dict[str, Any], LoopbackServer], dict[str, Any]]] = {
    "Viewer": lambda variables, server: {"viewer": VIEWER},
    "ServerFeaturesQuery": lambda variables, server: {"serverInfo": {"features": []}},
    "RunResumeStatus": lambda variables, server: {"model": None},
    "UpsertBucket": _run,
    "CreateRunFiles": _uploads,
    "ArtifactType": lambda variables, server: {"project": None},
    "CreateArtifact": _artifact,
    "NotifyScriptableRunAlert": lambda variables, server: {"notifyScriptableRunAlert": {"success": True}},
}
