"""Both ends of the connection between pods, on loopback."""

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_trainer.distributed import peer_link
from finetune_trainer.distributed.peer_link import (
    MAX_PENDING,
    Coordinator,
    Done,
    Event,
    Lost,
    Member,
    Restart,
    Smaller,
)
from finetune_trainer.distributed.peer_proof import Handshake

ATTEMPT = "uid-1/3"
TOKEN = b"t" * 32
OPENED: list[Member] = []


@pytest.fixture
def first() -> Iterator[Coordinator]:
    one = Coordinator(ATTEMPT, 3, ("127.0.0.1", 0), TOKEN)
    yield one
    for end in (one, *OPENED):
        end.close()
    OPENED.clear()


def other(first: Coordinator, node: int, attempt: str = ATTEMPT, token: bytes = TOKEN) -> Member:
    OPENED.append(Member(attempt, node, ("127.0.0.1", first.port), token))
    return OPENED[-1]


def until(seen: Callable[[], bool], *ends: Coordinator | Member) -> list[Event]:
    """The events at the ends until the condition holds."""
    events: list[Event] = []
    deadline = time.monotonic() + 20
    while not seen() and time.monotonic() < deadline:
        events += [event for end in ends for event in end.poll()]
        time.sleep(0.005)
    assert seen()
    return events


def next_event(end: Coordinator | Member, *others: Coordinator | Member) -> Event:
    """The next event at one end; the others are polled too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for one in others:
            one.poll()
        if events := end.poll():
            return events[0]
        time.sleep(0.005)
    raise AssertionError("no event")


def full_tensor(first: Coordinator) -> tuple[Member, Member]:
    one, two = other(first, 1), other(first, 2)
    until(lambda: first.is_complete() and one.is_complete() and two.is_complete(), first, one, two)
    return one, two


def answer_to(first: Coordinator, data: bytes, make: Callable[[str], bytes] = lambda _: b"") -> bytes:
    """What follows the nonce on a connection with this first data, and then data for the nonce, before it is closed."""
    with socket.create_connection(("127.0.0.1", first.port)) as connection:
        connection.settimeout(0.01)
        nonce = read_nonce(first, connection)
        connection.sendall(data + make(nonce))
        deadline = time.monotonic() + 20
        answer = b""
        while time.monotonic() < deadline:
            first.poll()
            try:
                found = connection.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:
                return answer
            if not found:
                return answer
            answer += found
    raise AssertionError("neither answered nor closed")


def read_nonce(first: Coordinator, connection: socket.socket) -> str:
    found = b""
    deadline = time.monotonic() + 20
    while not found.endswith(b"\n") and time.monotonic() < deadline:
        first.poll()
        with contextlib.suppress(TimeoutError):
            found += connection.recv(100)
    match = re.fullmatch(rb"nonce ([0-9a-f]{32})\n", found)
    assert match, found
    return match[1].decode()


def hello(node: int, nonce: str, *, attempt: str = ATTEMPT, token: bytes = TOKEN) -> bytes:
    """A hello with the proof of this token."""
    proof = Handshake(token, attempt, node, nonce, "a" * 32).proof()
    return f"hello {attempt} {node} {'a' * 32} {proof}\n".encode()


def test_the_pods_connect_in_any_order() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    early = Member(ATTEMPT, 1, ("127.0.0.1", port), TOKEN)
    early.poll()
    assert early.missing() == [0]
    first = Coordinator(ATTEMPT, 3, ("127.0.0.1", port), TOKEN)
    assert first.missing() == [1, 2]
    until(lambda: first.missing() == [2] and early.is_complete(), first, early)
    first.close()
    early.close()


def test_a_connection_that_closes_is_a_lost_pod(first: Coordinator) -> None:
    one, two = full_tensor(first)
    one.close()
    assert next_event(first, two) == Lost(1)
    first.send_failed(1, None)
    assert next_event(two) == Lost(1)


def test_a_pod_that_reports_its_code_and_closes_is_lost_with_that_code(first: Coordinator) -> None:
    one, two = full_tensor(first)
    one.send_failed(1, 137)
    one.close()
    assert next_event(first, two) == Lost(1, 137)
    first.send_failed(1, 137)
    assert next_event(two) == Lost(1, 137)


def test_the_first_pod_can_be_lost_too(first: Coordinator) -> None:
    one, two = full_tensor(first)
    first.send_failed(0, 70)
    first.close()
    assert (next_event(one), next_event(two)) == (Lost(0, 70), Lost(0, 70))
    assert one.poll() == []


def test_a_published_result_is_reported_to_the_others(first: Coordinator) -> None:
    one, _ = full_tensor(first)
    first.send_done()
    first.close()
    assert next_event(one) == Done()


def test_a_smaller_micro_batch_is_requested_by_any_pod_and_released_by_the_first(first: Coordinator) -> None:
    one, two = full_tensor(first)
    one.send_smaller(2)
    assert next_event(first, two) == Smaller(2)
    first.send_smaller(2)
    assert (next_event(one), next_event(two)) == (Smaller(2), Smaller(2))
    first.send_restart(2)
    assert (next_event(one), next_event(two)) == (Restart(2), Restart(2))


def test_a_silent_pod_is_lost(first: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    full_tensor(first)
    monkeypatch.setattr(peer_link, "SILENT_SECONDS", 0.0)
    assert next_event(first) == Lost(1)


@pytest.mark.parametrize(
    "greeting",
    [
        b"hello uid-1/3 1\n",
        b"hello uid-1/3 1 " + b"a" * 32 + b" " + b"0" * 64 + b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"hello uid-1/3 \xff\n",
        b"\n",
        b"x" * 300,
        b"x" * 100_000,
    ],
)
def test_an_invalid_hello_is_refused(first: Coordinator, greeting: bytes) -> None:
    assert answer_to(first, greeting) == b""
    assert first.missing() == [1, 2]


def test_a_hello_with_the_proof_is_answered(first: Coordinator) -> None:
    with socket.create_connection(("127.0.0.1", first.port)) as connection:
        connection.settimeout(0.01)
        connection.sendall(hello(1, read_nonce(first, connection)))
        until(lambda: first.missing() == [2], first)
        connection.settimeout(20)
        assert re.fullmatch(rb"ok [0-9a-f]{64}\n", connection.recv(100))


@pytest.mark.parametrize(
    "wrong",
    [{"node": 0}, {"node": 3}, {"attempt": "uid-1/2"}, {"token": b"u" * 32}, {"nonce": "b" * 32}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_proof_for_something_else_is_refused(first: Coordinator, wrong: dict[str, Any]) -> None:
    """For another pod, another attempt, another token, or another connection, whose hello was recorded."""
    assert answer_to(first, b"", lambda nonce: hello(**({"node": 1, "nonce": nonce} | wrong))) == b""
    assert first.missing() == [1, 2]


def test_a_second_pod_with_the_same_index_is_refused(first: Coordinator) -> None:
    full_tensor(first)
    assert answer_to(first, b"", lambda nonce: hello(1, nonce)) == b""


@pytest.mark.parametrize("line", ["failed 1 64", f"failed 1 64 {'0' * 64}", "failed 1 64 \ufffd"])
def test_a_line_without_its_proof_is_a_lost_pod_and_not_what_it_reports(first: Coordinator, line: str) -> None:
    one, two = full_tensor(first)
    assert one._connection
    one._connection.socket.sendall(line.encode() + b"\n")
    assert next_event(first, two) == Lost(1)


def test_a_line_is_accepted_once_and_in_one_direction(first: Coordinator) -> None:
    one, two = full_tensor(first)
    recorded: list[bytes] = []

    class Recorded:
        def sendall(self, data: bytes) -> None:
            recorded.append(data)

    connection = one._connection
    assert connection
    genuine = connection.socket
    connection.socket = Recorded()  # type: ignore[assignment]
    one.send_smaller(2)
    connection.socket = genuine
    genuine.sendall(recorded[0] * 2)
    assert next_event(first, two) == Smaller(2)
    assert next_event(first, two) == Lost(1)
    first._peers[2].socket.sendall(recorded[0])
    assert next_event(two) == Lost(0)


def test_a_pod_accepts_nothing_from_a_first_pod_without_the_token(first: Coordinator) -> None:
    other_token = other(first, 1, token=b"u" * 32)
    until(lambda: other_token._next_try > time.monotonic(), first, other_token)
    assert not other_token.is_complete()
    assert first.missing() == [1, 2]


def test_connections_without_a_hello_do_not_keep_a_pod_out(first: Coordinator) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_PENDING):
            stack.enter_context(socket.create_connection(("127.0.0.1", first.port)))
            first.poll()
        one = other(first, 1)
        until(lambda: first.missing() == [2] and one.is_complete(), first, one)


def test_a_refused_pod_connects_again(first: Coordinator) -> None:
    """A pod of the next attempt, while the first pod of the previous one is still ending."""
    late = other(first, 1, "uid-1/4")
    until(lambda: late._next_try > time.monotonic(), first, late)
    assert not late.is_complete()
    assert late.missing() == [0]


def test_a_pending_connection_without_a_hello_is_closed(first: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_link, "HELLO_SECONDS", 0.0)
    assert answer_to(first, b"") == b""


def test_unknown_lines_are_ignored(first: Coordinator) -> None:
    one, two = full_tensor(first)
    first._peers[1].send("ping")
    first._peers[1].send("failed one lost")
    first.send_done()
    assert next_event(one, two) == Done()
