"""Test the server of the live view with aiohttp's client: its data, and what it refuses."""

import asyncio
import json
import platform

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from fcnlab.live_view import details as details_module
from fcnlab.live_view import server as module
from fcnlab.live_view.details import Images
from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.server import FILES, application, serve


@pytest.fixture
def ask(make_run, tmp_path):
    """Send requests to the server of a folder with the run ``a``; return status, headers and body of the answers."""
    make_run("a")

    def send(*paths: str, method: str = "GET", **headers: str) -> list[tuple[int, dict, bytes]]:
        async def session() -> list:
            async with TestClient(TestServer(application(Monitor([tmp_path / "runs"])))) as client:
                answers = [await client.request(method, path, headers=headers) for path in paths]
                return [(answer.status, dict(answer.headers), await answer.read()) for answer in answers]

        return asyncio.run(session())

    return send


def test_the_page_needs_nothing_from_elsewhere(ask):
    for (path, (_, _, kind)), (status, headers, body) in zip(FILES.items(), ask(*FILES), strict=True):
        assert status == 200 and headers["Content-Type"] == f"{kind}; charset=utf-8", path
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
        assert b"http" not in body.replace(b"http://www.w3.org/2000/svg", b"").replace(b"fetch(", b""), path
        assert b"innerHTML" not in body and b"insertAdjacentHTML" not in body and b" style=" not in body, path
    assert b'src="/watch.js"' in ask("/")[0][2]


def test_changes_and_details(ask, tmp_path):
    run = tmp_path / "runs" / "a"
    (run / "train.log").write_text("[10:00] <script>alert(1)</script> \x1b[31m\n[10:01] api_key=0123456789\n")
    (run / "predictions").mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(run / "predictions" / "x.png")
    changes, details, image = ask("/changes?since=0&curves=1:0", "/runs/1", "/images/0")
    answer = json.loads(changes[2])
    assert answer["session"] and [row["folder"] for row in answer["rows"]] == ["a"]
    assert answer["curves"][0]["points"]["val/miou"] == [[20, 0.2], [40, 0.31]]
    content = json.loads(details[2])
    assert content["log"] == ["[10:00] <script>alert(1)</script> \\x1b[31m", "[10:01] api_key=[hidden]"]
    assert content["images"] == [{"number": 0, "name": "x"}]
    assert image[0] == 200 and image[1]["Content-Type"] == "image/png"
    assert image[1]["X-Content-Type-Options"] == "nosniff" and image[2] == (run / "predictions" / "x.png").read_bytes()


def test_a_page_of_an_earlier_server_gets_everything(ask):
    for query in ("since=99&session=other", "since=99", "since=x&curves=1,:,9:x,1:-1:2"):
        assert len(json.loads(ask(f"/changes?{query}")[0][2])["rows"]) == 1


@pytest.mark.parametrize("path", ["/changes", "/", "/runs/1", "/nowhere"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:x", "", "[::1]:80"]
)
def test_another_host_name_is_refused(ask, host, path):
    """As after DNS rebinding, where the name of another page leads to this machine."""
    status, headers, body = ask(path, Host=host)[0]
    assert status == 403 and b"Host header must name this machine" in body and "Content-Security-Policy" in headers


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8600", "127.0.0.1:1"])
def test_a_tunnel_may_have_another_port(ask, host):
    assert ask("/changes", Host=host, Origin=f"http://{host}")[0][0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_requests_of_other_pages_are_refused(ask, headers):
    assert ask("/changes", **headers)[0][0] == 403
    assert ask("/images/0", **headers)[0][0] == 403


def test_a_link_to_the_page_works(ask):
    assert ask("/", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})[0][0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_and_head_are_allowed(ask, method):
    assert all(status == 403 for status, _, _ in ask("/", "/changes", "/runs/1", method=method))


def test_head_has_no_body(ask):
    assert [(status, body) for status, _, body in ask("/", "/changes", method="HEAD")] == [(200, b"")] * 2


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/2", "/runs/-1", "/runs/a", "/runs/1/train.log", "/runs/../runs/1/x", "/images/99", "/images/1e3"),
        *("/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/runs/%2e%2e%2f", "/runs/99999999999"),
    ],
)
def test_no_path_of_a_request_reaches_the_disk(ask, path):
    status, _, body = ask(path)[0]
    assert status == 404 and b"root" not in body


def test_images_are_those_of_the_run(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "secret.png"
    (run / "predictions" / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(outside)
    (run / "predictions" / "link.png").symlink_to(outside)
    (run / "predictions" / "text.png").write_text("<script>")
    (run / "predictions" / "sub" / "b\x1b.png").write_bytes(outside.read_bytes())
    images = Images()
    found = {each["name"]: each["number"] for each in images.of(run)}
    assert set(found) == {"link", "text", "sub/b\\x1b"} and found.items() == {
        (each["name"], each["number"]) for each in images.of(run)
    }
    assert images.content(found["sub/b\\x1b"]) == outside.read_bytes()
    for name in ("link", "text"):
        with pytest.raises(ValueError, match=r"leads out of the folder|is no PNG"):
            images.content(found[name])
    with pytest.raises(LookupError):
        images.content(99)


def test_at_most_eight_images_are_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr(details_module, "IMAGES_LOOKED_AT", 20)
    (tmp_path / "predictions").mkdir()
    for number in range(30):
        (tmp_path / "predictions" / f"{number}.png").touch()
    assert len(Images().of(tmp_path)) == 8


def test_the_server_listens_on_this_machine_only(tmp_path):
    addresses, sockets = [], []

    async def start() -> None:
        task = asyncio.create_task(serve(Monitor([tmp_path]), 0, addresses.append))
        while not addresses:
            await asyncio.sleep(0.01)
        port = int(addresses[0].split(":")[2].strip("/"))
        sockets.extend(await asyncio.open_connection("127.0.0.1", port))
        for host in {platform.node(), "127.0.0.2"}:
            with pytest.raises(OSError):
                await asyncio.open_connection(host if host.startswith("127") else "0:0:0:0:0:0:0:1", port)
        sockets[1].close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(start())
    assert addresses[0].startswith(f"http://{module.ADDRESS}:")
