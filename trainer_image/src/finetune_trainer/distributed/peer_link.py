"""The connection between the PID 1 of every pod and that of the first: who is lost, who failed, and that all is done.

Lines of ASCII, at most 200 bytes each; what is longer, unknown or late ends the connection. Nothing is authenticated,
as nothing is between the processes that train: the first pod believes who names the attempt. Never blocks for long, and
has no thread: `poll` is called a few times a second.
"""

import logging
import re
import socket
import time
from dataclasses import dataclass, field
from typing import Protocol

from finetune_api.handoff import ExitCode

logger = logging.getLogger(__name__)

LONGEST_LINE = 200
MOST_BUFFERED = 65_536
PING_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A peer of which nothing was heard for so long is lost: a node that loses its power closes no connection."""
HELLO_SECONDS = 10.0
CONNECT_SECONDS = 2.0
MOST_STRANGERS = 64
FAILED = re.compile(r"failed (\d{1,3}) (\d{1,3}|lost)")
HELLO = re.compile(r"hello (\S{1,120}) (\d{1,3})")


@dataclass(frozen=True, slots=True)
class Lost:
    """A pod of the attempt that is no more; `code` is its exit code where it could tell."""

    node: int
    code: int | None = None

    def __str__(self) -> str:
        told = "was lost" if self.code is None else f"ended with exit code {self.code}"
        told = "was stopped by SIGTERM" if self.code == ExitCode.PREEMPTED else told
        return f"pod {self.node} of this attempt {told}"


@dataclass(frozen=True, slots=True)
class Done:
    """The first pod has published: there is nothing left to wait for."""


Event = Lost | Done


class Lifeline(Protocol):
    """One end of the connections between the pods of an attempt."""

    def poll(self) -> list[Event]:
        """What happened since the last call; never waits."""

    def is_complete(self) -> bool:
        """Whether every pod that this one must hear of was heard."""

    def missing(self) -> list[int]:
        """The pods that were not heard of yet."""

    def tell_failed(self, node: int, code: int | None) -> None:
        """Say that a pod ended, as far as the connections still stand."""

    def tell_done(self) -> None:
        """Say that the result is published."""

    def close(self) -> None:
        """End the connections."""


@dataclass
class Line:
    """One connection, read and written in lines."""

    socket: socket.socket
    came: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    buffer: bytes = b""
    is_gone: bool = False

    def read(self) -> list[str]:
        """The whole lines that have arrived; `is_gone` where the other end is, is silent, or sends too much."""
        while not self.is_gone:
            try:
                data = self.socket.recv(4096)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.heard = time.monotonic()
            self.buffer += data
            self.is_gone = not data or len(self.buffer) > MOST_BUFFERED
        whole, found, rest = self.buffer.rpartition(b"\n")
        self.buffer = rest
        lines = whole.decode("ascii", "replace").split("\n") if found else []
        if max(map(len, [*lines, rest])) > LONGEST_LINE or time.monotonic() - self.heard > SILENT_SECONDS:
            self.is_gone = True
        if time.monotonic() - self.told > PING_SECONDS:
            self.tell("ping")
        return [line for line in lines if len(line) <= LONGEST_LINE]

    def tell(self, line: str) -> None:
        """Writes a line; it fits into the kernel's buffer, or the other end has not read for a long time."""
        self.told = time.monotonic()
        try:
            self.socket.sendall(line.encode("ascii") + b"\n")
        except OSError:
            self.is_gone = True


class FirstPod:
    """The end in the first pod: it hears of every other, and tells each of the others' ends."""

    def __init__(self, attempt: str, nodes: int, port: int) -> None:
        self._attempt, self._nodes = attempt, nodes
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        dual = family == socket.AF_INET6
        self._server = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=MOST_STRANGERS)
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        self._strangers: list[Line] = []
        self._peers: dict[int, Line] = {}

    def poll(self) -> list[Event]:
        """Takes in who comes, and returns the pods that are lost or ended."""
        self._accept()
        self._meet()
        events: list[Event] = []
        for node, line in self._peers.items():
            told = [event for text in line.read() if (event := _failed(text))]
            events += told or ([Lost(node)] if line.is_gone else [])
        return events

    def is_complete(self) -> bool:
        """Whether all other pods have come."""
        return len(self._peers) == self._nodes - 1

    def missing(self) -> list[int]:
        """The pods that have not come."""
        return sorted(set(range(1, self._nodes)) - self._peers.keys())

    def tell_failed(self, node: int, code: int | None) -> None:
        """Tells every pod but the one that it is about."""
        for peer, line in self._peers.items():
            if peer != node:
                line.tell(f"failed {node} {'lost' if code is None else code}")

    def tell_done(self) -> None:
        """Tells every pod that it may go."""
        for line in self._peers.values():
            line.tell("done")

    def close(self) -> None:
        """Ends every connection; who connects from now on is refused."""
        for line in [*self._peers.values(), *self._strangers]:
            line.socket.close()
        self._server.close()

    def _accept(self) -> None:
        while len(self._strangers) < MOST_STRANGERS:
            try:
                connection, _ = self._server.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            connection.setblocking(False)
            self._strangers.append(Line(connection))

    def _meet(self) -> None:
        """Strangers become peers by their first line; those that say nothing sensible in time are shown out."""
        for line in list(self._strangers):
            texts = line.read()
            if not texts and not line.is_gone and time.monotonic() - line.came < HELLO_SECONDS:
                continue
            self._strangers.remove(line)
            node = self._introduced(texts[0]) if texts else None
            line.tell("no" if node is None else "ok")
            if node is None:
                line.socket.close()
            else:
                self._peers[node] = line

    def _introduced(self, text: str) -> int | None:
        """The node rank in a greeting of this attempt; one that is here already cannot come again."""
        match = HELLO.fullmatch(text)
        if match is None or match[1] != self._attempt:
            return None
        node = int(match[2])
        return node if 0 < node < self._nodes and node not in self._peers else None


class OtherPod:
    """The end in any other pod: it hears of the first, and through it of all."""

    def __init__(self, attempt: str, node: int, address: tuple[str, int]) -> None:
        self._attempt, self._node, self._address = attempt, node, address
        self._line: Line | None = None
        self._is_met = False
        self._next_try = 0.0

    def poll(self) -> list[Event]:
        """Tries to reach the first pod until it answers; then returns what it tells."""
        if self._line is None:
            if not self._is_met:
                self._try()
            return []
        line = self._line
        events = [event for text in line.read() if (event := self._event(text))]
        if line.is_gone:
            line.socket.close()
            self._line = None
            self._next_try = time.monotonic() + 1.0
        return events or ([Lost(0)] if line.is_gone and self._is_met else [])

    def is_complete(self) -> bool:
        """Whether the first pod has answered."""
        return self._is_met

    def missing(self) -> list[int]:
        """The first pod, until it has answered."""
        return [] if self._is_met else [0]

    def tell_failed(self, node: int, code: int | None) -> None:
        """Tells the first pod, which tells all others."""
        if self._line:
            self._line.tell(f"failed {node} {'lost' if code is None else code}")

    def tell_done(self) -> None:
        """Only the first pod can say that."""

    def close(self) -> None:
        """Ends the connection."""
        if self._line:
            self._line.socket.close()

    def _event(self, text: str) -> Event | None:
        self._is_met = self._is_met or text == "ok"
        return Done() if text == "done" else _failed(text)

    def _try(self) -> None:
        if time.monotonic() < self._next_try:
            return
        self._next_try = time.monotonic() + 1.0
        try:
            connection = socket.create_connection(self._address, CONNECT_SECONDS)
        except OSError as error:  # no such name yet, nobody listens yet
            logger.debug("%s:%d does not answer: %s", *self._address, error)
            return
        connection.setblocking(False)
        self._line = Line(connection)
        self._line.tell(f"hello {self._attempt} {self._node}")


class NoOtherPod:
    """The lifeline of an attempt that is one pod."""

    def poll(self) -> list[Event]:
        """Nothing happens."""
        return []

    def is_complete(self) -> bool:
        """Always."""
        return True

    def missing(self) -> list[int]:
        """Nobody."""
        return []

    def tell_failed(self, node: int, code: int | None) -> None:
        """There is nobody to tell."""

    def tell_done(self) -> None:
        """There is nobody to tell."""

    def close(self) -> None:
        """There is nothing to close."""


def _failed(text: str) -> Lost | None:
    match = FAILED.fullmatch(text)
    return Lost(int(match[1]), None if match[2] == "lost" else int(match[2])) if match else None
