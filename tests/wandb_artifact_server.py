"""A small W&B server on this machine: it answers the queries for one artifact and its file."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLACE = {"id": "p", "internalId": "p", "name": "fcnlab", "entity": {"name": "team"}}


class WandbServer(ThreadingHTTPServer):
    """It has the artifact ``team/fcnlab/NAME``, whose manifest is ``contents``, and the stored bytes ``stored``.

    ``asked`` are the names of the queries and the paths of the files that it was asked for, ``sent`` the variables of
    the mutations. ``answers`` are further answers, by a text in the query.
    """

    daemon_threads = True

    def __init__(self, name: str, contents: dict[str, dict[str, Any]], stored: bytes):
        super().__init__(("127.0.0.1", 0), Answers)
        self.name, self.contents, self.stored = name, contents, stored
        self.asked: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "artifactCollectionMembership" in query:
            asked = (variables["entity"], variables["project"], variables["name"])
            found = asked == ("team", "fcnlab", f"{self.name}:best")
            return {"project": {"artifactCollectionMembership": self.membership() if found else None}}
        if "currentManifest" in query:
            return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.address}/manifest"}}}}
        for text, answer in self.answers.items():
            if text in query:
                return answer
        return {"viewer": {"id": "u", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}

    def membership(self) -> dict[str, Any]:
        collection = {"__typename": "ArtifactSequence", "name": self.name, "project": PLACE}
        artifact = {
            "__typename": "Artifact", "id": "a", "artifactSequence": collection, "versionIndex": 3,
            "artifactType": {"name": "model"}, "description": None, "metadata": "{}", "ttlDurationSeconds": -2,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "size": 1, "digest": "d1",
            "digestAlgorithm": "MANIFEST_MD5", "commitHash": "c", "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None,
        }  # fmt: skip
        return {
            "__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 3,
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": [{"__typename": "ArtifactAlias", "id": "x", "alias": "best"}],
            "artifactCollection": collection, "artifact": artifact,
        }  # fmt: skip


class Answers(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            self.server.asked.append(self.path)
            return self._send(b"{}")
        request = json.loads(content)
        query, variables = request["query"], request.get("variables") or {}
        if "mutation" in query:
            self.server.sent.append(variables)
        self.server.asked.append((re.search(r"(?:query|mutation)\s*(\w*)", query) or [""])[1])
        self._send(json.dumps({"data": self.server.answer(query, variables)}).encode())

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/manifest":
            policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
            self._send(json.dumps({"version": 1, **policy, "contents": self.server.contents}).encode())
        elif self.path.startswith("/artifactsV2/"):
            self._send(self.server.stored)
        else:
            self._send(b"")

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


def entry(content: bytes, **more: Any) -> dict[str, Any]:
    """An entry of a manifest, as W&B writes it."""
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    return {"digest": digest, "size": len(content), "birthArtifactID": "a", **more}


@contextmanager
def serving(contents: dict[str, dict[str, Any]], stored: bytes, name: str = "checkpoint-abc") -> Iterator[WandbServer]:
    with WandbServer(name, contents, stored) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
