"""A local server that speaks OpenAI's chat completions: for tests, and to try the openai path without a key.

    python -m tools.models.server --port 8765 [--answers FILE] [--requests FILE]

It listens on 127.0.0.1 only, answers from a script of `Reply` records, and records every request that it
counts. A reply may be honest, or behave as real servers do on a bad day: no usage, false usage, 429, 500, a
hang, a cut stream. It is a fake for one user on one machine: no TLS, no authentication, no limits.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tools.models.replies import Reply, completion_body, error_body, stream_events

Script = Callable[[dict[str, Any]], Reply]
"""Makes the reply to a request body."""


class Received:
    """One counted request: its JSON body and its headers (names in lower case)."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        self.body = body
        self.headers = headers


class LocalServer:
    """Starts when made, ends with `close` or the `with` block.

    `replies` are given in the order of arrival; after them `then` answers. `refuses` maps parameter names to
    the error message of the 400 that a body with that parameter gets; such a request is counted and uses up
    no reply.
    """

    def __init__(
        self,
        replies: Iterable[Reply] = (),
        *,
        then: Script = lambda body: Reply(),
        refuses: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.requests: list[Received] = []
        self.closing = threading.Event()
        self._replies = list(replies)
        self._then = then
        self._refuses = dict(refuses or {})
        self._arrived = threading.Condition()
        self._http = _Http(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL for a profile."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def count(self) -> int:
        """Completion requests that arrived, answered or not."""
        return len(self.requests)

    def wait_for(self, count: int, seconds: float = 10.0) -> bool:
        """Blocks until `count` requests have arrived; False when they have not in time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: self.count >= count, seconds)

    def reply_to(self, received: Received) -> Reply:
        """Counts the request and takes its reply."""
        with self._arrived:
            self.requests.append(received)
            self._arrived.notify_all()
            for name, message in self._refuses.items():
                if name in received.body:
                    return Reply(status=400, error=message, param=name)
            if self._replies:
                return self._replies.pop(0)
        return self._then(received.body)

    def close(self) -> None:
        """Ends every connection, the hanging ones too, and waits for their threads."""
        self.closing.set()
        self._http.shutdown()
        self._http.end_connections()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: LocalServer) -> None:
        super().__init__(address, _Handler)
        self.owner = owner
        self._open: set[Any] = set()
        self._guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """Wakes the threads that read from idle connections."""
        with self._guard:
            for connection in self._open:
                try:
                    connection.shutdown(2)
                except OSError:
                    continue  # the client has closed it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Http

    def do_GET(self) -> None:
        if self.path.endswith("/models"):
            self._whole(200, {"object": "list", "data": [{"id": "canned", "object": "model"}]})
        else:
            self._whole(404, error_body("there is nothing here"))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.path.endswith("/chat/completions"):
            return self._whole(404, error_body("there is nothing here"))
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return self._whole(400, error_body("the body is not a JSON object"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.owner.reply_to(Received(body, headers))
        self._play(reply, body)

    def _play(self, reply: Reply, body: dict[str, Any]) -> None:
        if reply.fault in ("hang", "drop"):
            if reply.fault == "hang":
                self.server.owner.closing.wait(reply.hang_seconds)
            self.close_connection = True
        elif reply.raw is not None:
            self._bytes(reply.status, reply.raw, reply.headers, reply.content_type)
        elif reply.status != 200:
            self._whole(reply.status, error_body(reply.error, reply.param, reply.code), reply.headers)
        elif body.get("stream"):
            self._stream(reply, body)
        else:
            data = json.dumps(completion_body(reply, body)).encode()
            self._bytes(200, data, reply.headers, "application/json", cut=reply.fault == "cut")

    def _whole(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(body).encode(), headers or {}, "application/json")

    def _bytes(
        self, status: int, data: bytes, headers: Mapping[str, str], content_type: str, *, cut: bool = False
    ) -> None:
        self._head(status, {"content-type": content_type, "content-length": str(len(data)), **headers})
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def _stream(self, reply: Reply, body: dict[str, Any]) -> None:
        """Chunked. A cut one ends in the middle: by a broken connection, or ("end") as if that were all."""
        self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **reply.headers})
        events = stream_events(reply, body)
        for event in events[: len(events) // 2] if reply.fault in ("cut", "end", "stall") else events:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        if reply.fault == "stall":
            self.server.owner.closing.wait(reply.hang_seconds)
        if reply.fault in ("cut", "stall"):
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the owner records what matters."""


if __name__ == "__main__":
    from tools.models.serve import main

    raise SystemExit(main())
