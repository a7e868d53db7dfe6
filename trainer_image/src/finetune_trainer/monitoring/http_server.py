"""The trainer's HTTP server: a daemon thread of the standard library, started before heavy imports."""

import http.server
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from finetune_api.handoff import METRICS_PATH, PROGRESS_LIMIT_BYTES, PROGRESS_PATH

logger = logging.getLogger(__name__)

Body = Callable[[], bytes]
REQUEST_SECONDS = 10
MAX_CONNECTIONS = 32
"""Connections, each with a thread, that are open at once; the oldest is closed for another one."""


class Server(http.server.ThreadingHTTPServer):
    """An HTTP server on every address of the pod, IPv4 and IPv6 if the kernel has both."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._lock = threading.Lock()
        self._connections: dict[Any, None] = {}
        super().__init__(("", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the connection in a thread."""
        with self._lock:
            while len(self._connections) >= MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what broke a connection: it is the client's, or it was closed for another one."""
        logger.debug("a connection of %s ended", client_address, exc_info=True)

    def server_bind(self) -> None:
        """Accept IPv4 on the IPv6 socket too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def start_server(port: int, progress: Body, metrics: Body) -> int:
    """Serve /progress, /metrics and /healthz until the process ends; return the port."""
    bodies: dict[str, tuple[str, Body]] = {
        PROGRESS_PATH: ("application/json", progress),
        METRICS_PATH: ("text/plain; version=0.0.4; charset=utf-8", metrics),
        "/healthz": ("text/plain; charset=utf-8", lambda: b"ok\n"),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            kind, body = bodies.get(self.path.partition("?")[0], ("", None))
            if body is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            data = body()
            if kind == "application/json" and len(data) > PROGRESS_LIMIT_BYTES:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - name of the standard library
            logger.debug(format, *args)

    server = Server(port, Handler)
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return int(server.server_address[1])
