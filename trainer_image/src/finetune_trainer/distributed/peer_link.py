"""The connection between the PID 1 of every pod and the first pod's: failed and lost pods, restarts, and the end.

The protocol is lines of ASCII, at most 256 bytes each; a line that is longer, late or not of the other end closes the
connection. Both ends prove that they hold the attempt's token (`peer_proof.py`); the traffic between the training
processes has no such proof. There is no thread and no long wait: `poll` is called several times a second.
"""

import logging
import re
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.peer_proof import Handshake, Seal, make_nonce
from finetune_trainer.distributed.pod_network import listen

logger = logging.getLogger(__name__)

MAX_LINE = 256
MAX_BUFFERED = 65_536
PING_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A peer that sent nothing for this long is lost: a node without power closes no connection."""
HELLO_SECONDS = 10.0
CONNECT_SECONDS = 2.0
RETRY_SECONDS = 1.0
MAX_PENDING = 64
"""Connections without a hello; the oldest is closed for another one."""
SMALLER = re.compile(r"(smaller|restart) (\d{1,4})")
FAILED = re.compile(r"failed (\d{1,3}) (\d{1,3}|lost)")
NONCE = re.compile(r"nonce ([0-9a-f]{32})")
HELLO = re.compile(r"hello (\S{1,80}) (\d{1,3}) ([0-9a-f]{32}) ([0-9a-f]{64})")


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
    """One connection, read and written in lines; after the hello, each line has its proof."""

    socket: socket.socket
    opened: float = field(default_factory=time.monotonic)
    last_received: float = field(default_factory=time.monotonic)
    last_sent: float = field(default_factory=time.monotonic)
    nonce: str = field(default_factory=make_nonce)
    is_closed: bool = False
    _buffer: bytes = b""
    _lines: deque[str] = field(default_factory=deque)
    _incoming: Seal | None = None
    _outgoing: Seal | None = None

    def seal(self, incoming: Seal, outgoing: Seal) -> None:
        """Require the proof on every further line, and add it."""
        self._incoming, self._outgoing = incoming, outgoing

    def read_line(self) -> str | None:
        """Return the next line without its proof; None if there is none. A line without its proof closes."""
        self._receive()
        if not self._lines:
            return None
        line = self._lines.popleft()
        text = self._incoming.open(line) if self._incoming else line
        if text is None:
            self._lines.clear()
            self.is_closed = True
        return text

    def read_lines(self) -> list[str]:
        """Return the lines received since the last call."""
        return list(iter(self.read_line, None))

    def send(self, line: str) -> None:
        """Write a line. It fits into the kernel's buffer unless the peer has not read for a long time."""
        self.last_sent = time.monotonic()
        sealed = self._outgoing.sign(line) if self._outgoing else line
        try:
            self.socket.sendall(sealed.encode("ascii") + b"\n")
        except OSError:
            self.is_closed = True

    def _receive(self) -> None:
        """Split what has arrived into lines; set `is_closed` if the peer is closed, is silent or sends too much."""
        while not self.is_closed:
            try:
                data = self.socket.recv(4096)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.last_received = time.monotonic()
            self._buffer += data
            self.is_closed = not data or len(self._buffer) > MAX_BUFFERED
        whole, newline, self._buffer = self._buffer.rpartition(b"\n")
        lines = whole.decode("ascii", "replace").split("\n") if newline else []
        if max(map(len, [*lines, self._buffer])) > MAX_LINE or time.monotonic() - self.last_received > SILENT_SECONDS:
            self.is_closed = True
        if self._outgoing and time.monotonic() - self.last_sent > PING_SECONDS:
            self.send("ping")
        self._lines += lines


class Coordinator(PeerLink):
    """The end in the first pod: it receives from every other pod and forwards each failure."""

    def __init__(self, attempt: str, nodes: int, address: tuple[str, int], token: bytes) -> None:
        self._attempt, self._nodes, self._token = attempt, nodes, token
        self._server = listen(address, MAX_PENDING)
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
            reported = [event for text in peer.read_lines() if (event := _parse_event(text))]
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
        for _ in range(MAX_PENDING):
            try:
                accepted, _ = self._server.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            if len(self._pending) == MAX_PENDING:
                self._pending.pop(0).socket.close()
            accepted.setblocking(False)
            connection = Connection(accepted)
            connection.send(f"nonce {connection.nonce}")
            self._pending.append(connection)

    def _admit(self) -> None:
        """Turn pending connections into peers by their first line; close those without a valid one in time."""
        for connection in list(self._pending):
            text = connection.read_line()
            is_early = time.monotonic() - connection.opened < HELLO_SECONDS
            if text is None and not connection.is_closed and is_early:
                continue
            self._pending.remove(connection)
            hello = self._parse_hello(text or "", connection.nonce)
            if hello is None:
                connection.socket.close()
                continue
            connection.seal(incoming=hello.to_first(), outgoing=hello.to_other())
            connection.send("ok")
            self._peers[hello.node] = connection

    def _parse_hello(self, text: str, nonce: str) -> Handshake | None:
        """Return the hello of a pod of this attempt; None if the proof is wrong, or that pod is connected already."""
        match = HELLO.fullmatch(text)
        if match is None or match[1] != self._attempt:
            return None
        hello = Handshake(self._token, self._attempt, int(match[2]), nonce, match[3])
        is_missing = 0 < hello.node < self._nodes and hello.node not in self._peers
        return hello if hello.is_proof(match[4]) and is_missing else None


class Member(PeerLink):
    """The end in any other pod: it is connected to the coordinator alone."""

    def __init__(self, attempt: str, node: int, address: tuple[str, int], token: bytes) -> None:
        self._attempt, self._node, self._address, self._token = attempt, node, address, token
        self._connection: Connection | None = None
        self._is_greeted = False
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
        events = self._read(connection)
        if connection.is_closed:
            connection.socket.close()
            self._connection = None
            self._next_try = time.monotonic() + RETRY_SECONDS
            self._is_greeted = False
        return events or ([Lost(0)] if connection.is_closed and self._is_accepted else [])

    @override
    def missing(self) -> list[int]:
        return [] if self._is_accepted else [0]

    @override
    def send_failed(self, node: int, code: int | None) -> None:
        if self._connection and self._is_accepted:
            self._connection.send(_failed_line(node, code))

    @override
    def send_smaller(self, rows: int) -> None:
        if self._connection and self._is_accepted:
            self._connection.send(f"smaller {rows}")

    @override
    def close(self) -> None:
        if self._connection:
            self._connection.socket.close()

    def _read(self, connection: Connection) -> list[Event]:
        """Answer the first pod's nonce; then return the events that it sends."""
        if not self._is_greeted:
            self._is_greeted = self._answer(connection)
        if not self._is_greeted:
            return []
        return [event for text in connection.read_lines() if (event := self._parse(text))]

    def _answer(self, connection: Connection) -> bool:
        """Send the hello; return whether it was sent, because the first pod's nonce is there."""
        text = connection.read_line()
        if text is None:
            return False
        match = NONCE.fullmatch(text)
        if match is None:
            connection.is_closed = True
            return False
        hello = Handshake(self._token, self._attempt, self._node, match[1], connection.nonce)
        connection.send(f"hello {self._attempt} {self._node} {connection.nonce} {hello.proof()}")
        connection.seal(incoming=hello.to_other(), outgoing=hello.to_first())
        return True

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


def _failed_line(node: int, code: int | None) -> str:
    return f"failed {node} {'lost' if code is None else code}"


def _parse_event(text: str) -> Event | None:
    if match := SMALLER.fullmatch(text):
        return (Smaller if match[1] == "smaller" else Restart)(int(match[2]))
    match = FAILED.fullmatch(text)
    return Lost(int(match[1]), None if match[2] == "lost" else int(match[2])) if match else None
