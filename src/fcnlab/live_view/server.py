"""The server of the live view: one page and its data, to this machine only, read-only.

Another web page in the user's browser could send requests here, also under a host name of its own (DNS rebinding). So
the Host header must name this machine, and requests of other origins are refused. A request names a run or an image by
a number, and no file.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from uuid import uuid4

from aiohttp import web

from fcnlab.live_view.details import Images, details
from fcnlab.live_view.monitor import Monitor

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")  # with any port: a tunnel (ssh -L) has another one than the server
METHODS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Server": "fcnlab",
}
FILES = {  # of the page; it shares the style and the theme of the page of fcnlab compare
    "/": ("fcnlab.live_view", "watch.html", "text/html"),
    "/watch.css": ("fcnlab.live_view", "watch.css", "text/css"),
    "/watch.js": ("fcnlab.live_view", "watch.js", "text/javascript"),
    "/charts.js": ("fcnlab.live_view", "charts.js", "text/javascript"),
    "/page.css": ("fcnlab.comparison", "page.css", "text/css"),
    "/theme.js": ("fcnlab.comparison", "theme.js", "text/javascript"),
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(monitor: Monitor) -> web.Application:
    """Return the server of a monitor, which is updated when the page asks for changes."""
    app = web.Application(middlewares=[_guarded])
    for path, (package, name, kind) in FILES.items():
        app.router.add_get(path, _file((files(package) / "html" / name).read_bytes(), kind))
    data = _Data(monitor)
    app.router.add_get("/changes", data.changes)
    app.router.add_get(r"/runs/{number:\d{1,9}}", data.run)
    app.router.add_get(r"/images/{number:\d{1,9}}", data.image)
    return app


async def serve(monitor: Monitor, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until this task is cancelled; ``port`` 0 is a free one. ``on_start`` gets the address.

    Raises
    ------
    OSError
        The port cannot be used.
    """
    runner = web.AppRunner(application(monitor), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, ADDRESS, port)
        await site.start()
        on_start(f"http://{ADDRESS}:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that other pages caused, and set the headers of all responses."""
    if reason := refusal(request):
        response: web.StreamResponse = web.Response(status=403, text=reason)
    else:
        try:
            response = await handler(request)
        except web.HTTPException as error:  # no such page, or no such method
            response = web.Response(status=error.status, text=error.reason)
    response.headers.update(HEADERS)
    return response


def refusal(request: web.BaseRequest) -> str | None:
    """Return why a request is refused; None if it is not."""
    host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if request.method not in METHODS:
        return "Only GET and HEAD are allowed."
    if _host_name(host) not in HOSTS:
        return "The Host header must name this machine: 127.0.0.1 or localhost."
    if origin is not None and origin != f"http://{host}":
        return "Requests of other origins are refused."
    is_link = request.path == "/" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in ("none", "same-origin") and not is_link:
        return "Requests of other sites are refused."
    return None


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    name, _, port = host.partition(":")
    return name.lower() if port.isdecimal() or ":" not in host else ""


def _file(content: bytes, kind: str) -> Handler:
    async def send(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8")

    return send


class _Data:
    """The answers about a monitor. ``session`` lets a page notice that another server answers."""

    def __init__(self, monitor: Monitor):
        self.monitor, self.images = monitor, Images()
        self.session = uuid4().hex
        self._lock = asyncio.Lock()  # one reader of the disk at a time

    async def changes(self, request: web.Request) -> web.Response:
        """Answer ``/changes?since=VERSION&curves=RUN:VERSION,...``."""
        since = _number(request.query.get("since", "0"))
        if request.query.get("session") != self.session:
            since = 0
        pairs = (pair.partition(":") for pair in request.query.get("curves", "").split(",") if pair)
        curves = {_number(number): _number(version) if since else -1 for number, _, version in pairs}
        async with self._lock:
            return await asyncio.to_thread(self._changes, since, curves)

    def _changes(self, since: int, curves: dict[int, int]) -> web.Response:
        self.monitor.update()
        return _json({"session": self.session, **self.monitor.changes(since, curves)})

    async def run(self, request: web.Request) -> web.Response:
        run = self.monitor.runs.get(_number(request.match_info["number"]))
        if run is None:
            raise web.HTTPNotFound
        async with self._lock:
            return _json(await asyncio.to_thread(lambda: details(run, self.images.of(run.folder))))

    async def image(self, request: web.Request) -> web.Response:
        try:
            data = await asyncio.to_thread(self.images.content, _number(request.match_info["number"]))
        except (LookupError, OSError, ValueError):
            raise web.HTTPNotFound from None
        return web.Response(body=data, content_type="image/png")


def _json(value: object) -> web.Response:
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return web.Response(text=text, content_type="application/json")


def _number(text: str) -> int:
    """Return a number of a request, 0 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
