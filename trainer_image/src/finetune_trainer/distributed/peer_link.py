"""The connection between the PID 1 of every pod and the first pod's: failed and lost pods, restarts, and the end.

The protocol is lines of ASCII, at most 200 bytes each; a line that is longer, unknown or late ends the connection.
Nothing is authenticated, as in the traffic between the training processes: the coordinator accepts every peer that
names the attempt. There is no thread and no long wait: `poll` is called several times a second.
"""

import logging
import re
import socket
import time
from dataclasses import dataclass, field

from typing_extensions import override

from finetune_api.handoff import ExitCode

logger = logging.getLogger(__name__)

MAX_LINE = 200
MAX_BUFFERED = 65_536
PING_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A peer that sent nothing for this long is lost: a node without power closes no connection."""
HELLO_SECONDS = 10.0
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 1.0
MAX_PENDING = 64
SMALLER = re.compile(r"(smaller|restart) (\d{1,4})")
FAILED = re.compile(r"failed (\d{1,3}) (\d{1,3}|lost)")
HELLO = re.compile(r"hello (\S{1,120}) (\d{1,3})")


@dataclass(frozen=True, slots=True)
class Lost:
    """A pod of the attempt that ended; `code` is its exit code, or None if it reported none."""

    node: int
    code: int | None = None

    def __str__(self) -> str:
        how = "was lost" if self.code is None else f"ended with exit code {self.code}"
        how = "was stopped by SIGTERM" if self.code == ExitCode.PREEMPTED else how
        return f"pod {self.node} of this attempt {how}"


@dataclass(frozen=True, slots=True)
class Done:
    """The first pod has published."""


@dataclass(frozen=True, slots=True)
class Smaller:
    """A process ran out of GPU memory: every pod stops its processes; the next micro-batch has this many rows."""

    rows: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The first pod has stopped its processes, and with them the old rendezvous: the other pods start theirs."""

    rows: int


Event = Lost | Done | Smaller | Restart


class PeerLink:
    """One end of the connections between the pods of an attempt; this one, of a single pod, has no peer."""

    def poll(self) -> list[Event]:
        """Return the events since the last call, without waiting."""
        return []

    def is_complete(self) -> bool:
        """Return whether every expected pod has connected."""
        return not self.missing()

    def missing(self) -> list[int]:
        """Return the pods that have not connected yet."""
        return []

    def send_failed(self, node: int, code: int | None) -> None:
        """Report that a pod ended, to every other pod that is still connected."""

    def send_done(self) -> None:
        """Report that the result is published; only the first pod publishes."""

    def send_smaller(self, rows: int) -> None:
        """Request that every pod stops its processes, to start them again with this micro-batch."""

    def send_restart(self, rows: int) -> None:
        """Report that the first pod starts its processes with this micro-batch; only the first pod sends it."""

    def close(self) -> None:
        """Close the connections and refuse new ones."""


@dataclass
class Connection:
    """One connection, read and written in lines."""

    socket: socket.socket
    opened: float = field(default_factory=time.monotonic)
    last_received: float = field(default_factory=time.monotonic)
    last_sent: float = field(default_factory=time.monotonic)
    buffer: bytes = b""
    is_closed: bool = False

    def read(self) -> list[str]:
        """Return the complete lines received; set `is_closed` if the peer is closed, is silent or sends too much."""
        while not self.is_closed:
            try:
                data = self.socket.recv(4096)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.last_received = time.monotonic()
            self.buffer += data
            self.is_closed = not data or len(self.buffer) > MAX_BUFFERED
        whole, newline, rest = self.buffer.rpartition(b"\n")
        self.buffer = rest
        lines = whole.decode("ascii", "replace").split("\n") if newline else []
        if max(map(len, [*lines, rest])) > MAX_LINE or time.monotonic() - self.last_received > SILENT_SECONDS:
            self.is_closed = True
        if time.monotonic() - self.last_sent > PING_SECONDS:
            self.send("ping")
        return [line for line in lines if len(line) <= MAX_LINE]

    def send(self, line: str) -> None:
        """Write a line. It fits into the kernel's buffer unless the peer has not read for a long time."""
        self.last_sent = time.monotonic()
        try:
            self.socket.sendall(line.encode("ascii") + b"\n")
        except OSError:
            self.is_closed = True


class Coordinator(PeerLink):
    """The end in the first pod: it receives from every other pod and forwards each failure."""

    def __init__(self, attempt: str, nodes: int, port: int) -> None:
        self._attempt, self._nodes = attempt, nodes
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        dual = family == socket.AF_INET6
        self._server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=MAX_PENDING)
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        self._pending: list[Connection] = []
        self._peers: dict[int, Connection] = {}

    @override
    def poll(self) -> list[Event]:
        """Accept new peers and return the pods that ended or are lost."""
        self._accept()
        self._admit()
        events: list[Event] = []
        for node, peer in self._peers.items():
            reported = [event for text in peer.read() if (event := _parse_event(text))]
            events += reported or ([Lost(node)] if peer.is_closed else [])
        return events

    @override
    def missing(self) -> list[int]:
        return sorted(set(range(1, self._nodes)) - self._peers.keys())

    @override
    def send_failed(self, node: int, code: int | None) -> None:
        for number, peer in self._peers.items():
            if number != node:
                peer.send(_failed_line(node, code))

    @override
    def send_done(self) -> None:
        self._send_all("done")

    @override
    def send_smaller(self, rows: int) -> None:
        self._send_all(f"smaller {rows}")

    @override
    def send_restart(self, rows: int) -> None:
        self._send_all(f"restart {rows}")

    def _send_all(self, line: str) -> None:
        for peer in self._peers.values():
            peer.send(line)

    @override
    def close(self) -> None:
        for connection in [*self._peers.values(), *self._pending]:
            connection.socket.close()
        self._server.close()

    def _accept(self) -> None:
        while len(self._pending) < MAX_PENDING:
            try:
                accepted, _ = self._server.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            accepted.setblocking(False)
            self._pending.append(Connection(accepted))

    def _admit(self) -> None:
        """Turn pending connections into peers by their first line; close those without a valid one in time."""
        for connection in list(self._pending):
            texts = connection.read()
            is_early = time.monotonic() - connection.opened < HELLO_SECONDS
            if not texts and not connection.is_closed and is_early:
                continue
            self._pending.remove(connection)
            node = self._parse_hello(texts[0]) if texts else None
            connection.send("no" if node is None else "ok")
            if node is None:
                connection.socket.close()
            else:
                self._peers[node] = connection

    def _parse_hello(self, text: str) -> int | None:
        """Return the node rank in a hello line of this attempt; None if that node is connected already."""
        match = HELLO.fullmatch(text)
        if match is None or match[1] != self._attempt:
            return None
        node = int(match[2])
        return node if 0 < node < self._nodes and node not in self._peers else None


class Member(PeerLink):
    """The end in any other pod: it is connected to the coordinator alone."""

    def __init__(self, attempt: str, node: int, address: tuple[str, int]) -> None:
        self._attempt, self._node, self._address = attempt, node, address
        self._connection: Connection | None = None
        self._is_accepted = False
        self._next_try = 0.0

    @override
    def poll(self) -> list[Event]:
        """Connect until the coordinator accepts; then return the events that it sends."""
        if self._connection is None:
            if not self._is_accepted:
                self._connect()
            return []
        connection = self._connection
        events = [event for text in connection.read() if (event := self._parse(text))]
        if connection.is_closed:
            connection.socket.close()
            self._connection = None
            self._next_try = time.monotonic() + RETRY_SECONDS
        return events or ([Lost(0)] if connection.is_closed and self._is_accepted else [])

    @override
    def missing(self) -> list[int]:
        return [] if self._is_accepted else [0]

    @override
    def send_failed(self, node: int, code: int | None) -> None:
        if self._connection:
            self._connection.send(_failed_line(node, code))

    @override
    def send_smaller(self, rows: int) -> None:
        if self._connection:
            self._connection.send(f"smaller {rows}")

    @override
    def close(self) -> None:
        if self._connection:
            self._connection.socket.close()

    def _parse(self, text: str) -> Event | None:
        self._is_accepted = self._is_accepted or text == "ok"
        return Done() if text == "done" else _parse_event(text)

    def _connect(self) -> None:
        if time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + RETRY_SECONDS
        try:
            connected = socket.create_connection(self._address, CONNECT_SECONDS)
        except OSError as error:  # the name does not resolve yet, or the port is not open yet
            logger.debug("%s:%d refuses the connection: %s", *self._address, error)
            return
        connected.setblocking(False)
        self._connection = Connection(connected)
        self._connection.send(f"hello {self._attempt} {self._node}")


def _failed_line(node: int, code: int | None) -> str:
    return f"failed {node} {'lost' if code is None else code}"


def _parse_event(text: str) -> Event | None:
    if match := SMALLER.fullmatch(text):
        return (Smaller if match[1] == "smaller" else Restart)(int(match[2]))
    match = FAILED.fullmatch(text)
    return Lost(int(match[1]), None if match[2] == "lost" else int(match[2])) if match else None
