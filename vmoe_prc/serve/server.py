"""The HTTP server: the page, and a JSON API.

    GET  /api/models                              the models
    POST /api/images                              a picture as the body -> {"image": ID}
    POST /api/look {"image": ID, "changes": {…}}  what each model makes of it, see `Gallery.look`
    GET  /api/patches?model=0&block=…&expert=3    see `Gallery.patches`

An error is {"error": "one line"} with a status of 400 and above. Nothing is written to disk.
"""

import http.server
import json
import sys
from collections.abc import Callable
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vmoe_prc.figures.interactive import SCRIPT, STYLE, read_asset
from vmoe_prc.serve.changes import Changes
from vmoe_prc.serve.gallery import Gallery, RefusedError

# Bytes of a request to `/api/look`.
MAX_JSON = 10_000
# Seconds that a client may take to send the next bytes.
TIMEOUT = 20
# Nothing is fetched from elsewhere, even if a name holds markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def create_server(
    gallery: Gallery, host: str, port: int, max_bytes: int
) -> http.server.ThreadingHTTPServer:
    """Makes the server; `serve_forever` runs it.

    Args:
      gallery: Answers the requests.
      host: Address to listen on.
      port: Port; 0 for any free one.
      max_bytes: Bytes of a picture.

    Raises:
      OSError: If the address cannot be used.
    """
    pages = {
        "/": ("text/html", _read("page.html")),
        "/page.css": ("text/css", _read("page.css") + read_asset(STYLE)),
        "/page.js": ("text/javascript", read_asset(SCRIPT) + _read("page.js")),
    }

    class Handler(_Handler):
        pass

    Handler.gallery, Handler.pages, Handler.max_bytes = gallery, pages, max_bytes
    Handler.local = host in ("127.0.0.1", "::1", "localhost")
    return http.server.ThreadingHTTPServer((host, port), Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers a request."""

    gallery: Gallery
    pages: dict[str, tuple[str, str]]
    max_bytes: int
    local: bool
    timeout = TIMEOUT
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vmoe_prc", ""

    def do_GET(self) -> None:
        """Answers GET."""
        url = urlsplit(self.path)
        if url.path in self.pages:
            self._answer(lambda: self.pages[url.path])
        elif url.path == "/api/models":
            self._answer(self.gallery.describe)
        elif url.path == "/api/patches":
            self._answer(lambda: self._patches(url.query))
        else:
            self._send(404, {"error": "no such page"})

    def do_POST(self) -> None:
        """Answers POST."""
        if self.path == "/api/images":
            self._answer(lambda: {"image": self.gallery.add(self._body(self.max_bytes))})
        elif self.path == "/api/look":
            self._answer(self._look)
        else:
            self._refuse(404, "no such page")

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: names of pictures are nobody's business."""

    def _look(self) -> Any:
        try:
            asked = json.loads(self._body(MAX_JSON))
            if not isinstance(asked, dict):
                raise ValueError("expected an object")
            changes = Changes.parse(dict(asked.get("changes") or {}))
        except (ValueError, TypeError, RecursionError) as error:
            raise RefusedError(" ".join(str(error).split())) from None
        return self.gallery.look(str(asked.get("image")), changes)

    def _patches(self, query: str) -> Any:
        asked = parse_qs(query)
        try:
            model, expert = (int(asked[name][0]) for name in ("model", "expert"))
            block = asked["block"][0]
        except (KeyError, ValueError):
            raise RefusedError("expected model=NUMBER, block=NAME and expert=NUMBER") from None
        return self.gallery.patches(model, block, expert)

    def _body(self, most: int) -> bytes:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if size < 0:
            self.close_connection = True
            raise RefusedError("expected a Content-Length")
        if size > most:
            # The rest of the request is not read.
            self.close_connection = True
            raise RefusedError(f"{size:,} bytes are more than {most:,}")
        return self.rfile.read(size)

    def _answer(self, make: Callable[[], Any]) -> None:
        # A page elsewhere that resolves its own name to this address is not served.
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if self.local and host not in ("127.0.0.1", "localhost", "[::1]"):
            self._refuse(403, "this server answers to localhost only")
            return
        try:
            answer = make()
        except RefusedError as error:
            self._refuse(400, str(error))
        except Exception as error:
            # A fault of ours: the page shows that there is one, the terminal which one.
            print(f"error: {self.path:.80}: {type(error).__name__}: {error}", file=sys.stderr)
            self._refuse(500, "the server failed; its terminal shows why")
        else:
            self._send(200, answer)

    def _refuse(self, status: int, text: str) -> None:
        self.close_connection = True
        self._send(status, {"error": text})

    def _send(self, status: int, answer: Any) -> None:
        kind, text = answer if isinstance(answer, tuple) else ("application/json", _json(answer))
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _json(answer: Any) -> str:
    return json.dumps(answer, ensure_ascii=False)


def _read(name: str) -> str:
    return (resources.files("vmoe_prc.serve") / name).read_text()
