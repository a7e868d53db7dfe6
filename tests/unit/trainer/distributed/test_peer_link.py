"""Both ends of the connection between pods, on loopback."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from finetune_trainer.distributed import peer_link as lifeline
from finetune_trainer.distributed.peer_link import Done, FirstPod, Lost, OtherPod
from finetune_trainer.distributed.peer_link import Event as Word

ATTEMPT = "uid-1/3"
OPENED: list[OtherPod] = []


@pytest.fixture
def first() -> Iterator[FirstPod]:
    one = FirstPod(ATTEMPT, 3, 0)
    yield one
    for end in (one, *OPENED):
        end.close()
    OPENED.clear()


def other(first: FirstPod, node: int, attempt: str = ATTEMPT) -> OtherPod:
    OPENED.append(OtherPod(attempt, node, ("127.0.0.1", first.port)))
    return OPENED[-1]


def until(seen: Callable[[], bool], *ends: FirstPod | OtherPod) -> list[Word]:
    """What the ends hear until something is so."""
    heard: list[Word] = []
    deadline = time.monotonic() + 20
    while not seen() and time.monotonic() < deadline:
        heard += [word for end in ends for word in end.poll()]
        time.sleep(0.005)
    assert seen()
    return heard


def hears(end: FirstPod | OtherPod, *others: FirstPod | OtherPod) -> Word:
    """The next word at one end, while the others look too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for one in others:
            one.poll()
        if words := end.poll():
            return words[0]
        time.sleep(0.005)
    raise AssertionError("nothing was heard")


def gathered(first: FirstPod) -> tuple[OtherPod, OtherPod]:
    one, two = other(first, 1), other(first, 2)
    until(lambda: first.is_complete() and one.is_complete() and two.is_complete(), first, one, two)
    return one, two


def stranger(first: FirstPod, data: bytes) -> bytes:
    """What a connection that begins like this is answered before it is shut."""
    with socket.create_connection(("127.0.0.1", first.port)) as connection:
        connection.sendall(data)
        connection.settimeout(0.01)
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
    raise AssertionError("it was neither answered nor shut")


def test_the_pods_gather_whoever_comes_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = int(reserved.getsockname()[1])
    early = OtherPod(ATTEMPT, 1, ("127.0.0.1", port))
    early.poll()
    assert early.missing() == [0]
    first = FirstPod(ATTEMPT, 3, port)
    assert first.missing() == [1, 2]
    until(lambda: first.missing() == [2] and early.is_complete(), first, early)
    first.close()
    early.close()


def test_a_connection_that_closes_is_a_lost_pod(first: FirstPod) -> None:
    one, two = gathered(first)
    one.close()
    assert hears(first, two) == Lost(1)
    first.tell_failed(1, None)
    assert hears(two) == Lost(1)


def test_who_says_how_it_ended_is_lost_with_its_code_though_it_closes_at_once(first: FirstPod) -> None:
    one, two = gathered(first)
    one.tell_failed(1, 137)
    one.close()
    assert hears(first, two) == Lost(1, 137)
    first.tell_failed(1, 137)
    assert hears(two) == Lost(1, 137)


def test_the_first_pod_is_missed_too(first: FirstPod) -> None:
    one, two = gathered(first)
    first.tell_failed(0, 70)
    first.close()
    assert (hears(one), hears(two)) == (Lost(0, 70), Lost(0, 70))
    assert one.poll() == []


def test_a_published_result_lets_the_others_go(first: FirstPod) -> None:
    one, _ = gathered(first)
    first.tell_done()
    first.close()
    assert hears(one) == Done()


def test_a_pod_that_says_nothing_any_more_is_lost(first: FirstPod, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered(first)
    monkeypatch.setattr(lifeline, "SILENT_SECONDS", 0.0)
    assert hears(first) == Lost(1)


@pytest.mark.parametrize(
    "greeting",
    [
        b"hello uid-1/2 1\n",
        b"hello uid-1/3 0\n",
        b"hello uid-1/3 3\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"hello uid-1/3 \xff\n",
        b"\n",
        b"x" * 300,
        b"x" * 100_000,
    ],
)
def test_what_is_no_greeting_of_this_attempt_is_shown_out(first: FirstPod, greeting: bytes) -> None:
    assert stranger(first, greeting) in {b"no\n", b""}
    assert first.missing() == [1, 2]


def test_a_second_pod_of_the_same_number_is_shown_out(first: FirstPod) -> None:
    gathered(first)
    assert stranger(first, b"hello uid-1/3 1\n") == b"no\n"


def test_a_pod_that_was_shown_out_knocks_again(first: FirstPod) -> None:
    """A pod of the next attempt, while the first pod of the last one still ends."""
    late = other(first, 1, "uid-1/4")
    until(lambda: late._next_try > time.monotonic(), first, late)
    assert not late.is_complete()
    assert late.missing() == [0]


def test_silence_of_a_stranger_is_not_waited_out_for_ever(first: FirstPod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "HELLO_SECONDS", 0.0)
    assert stranger(first, b"") == b"no\n"


def test_words_that_nobody_knows_change_nothing(first: FirstPod) -> None:
    one, two = gathered(first)
    first._peers[1].tell("ping")
    first._peers[1].tell("failed one lost")
    first.tell_done()
    assert hears(one, two) == Done()
