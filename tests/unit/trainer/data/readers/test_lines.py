import io

import pytest

from finetune_trainer.data.readers.lines import read_lines, skip_mark, too_long


def stream(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"abcd\nef", [(1, b"abcd", True), (2, b"ef", True)]),
        (b"abcd", [(1, b"abcd", True)]),
        (b"abcde\nef", [(1, b"abcde", False), (2, b"ef", True)]),
        (b"abcdefgh\n\nef\r\n", [(1, b"abcde", False), (2, b"", True), (3, b"ef", True)]),
        (b"abcdefgh", [(1, b"abcde", False)]),
        (b"", []),
    ],
)
def test_a_line_of_the_limit_is_whole_and_a_longer_one_is_cut(
    content: bytes, found: list[tuple[int, bytes, bool]]
) -> None:
    assert list(read_lines(stream(content), limit=4)) == found


def test_a_line_of_megabytes_is_skipped_to_its_end() -> None:
    content = b"x" * (3 << 20) + b"\nnext"
    assert [(number, whole) for number, _, whole in read_lines(stream(content), limit=4)] == [(1, False), (2, True)]


@pytest.mark.parametrize(
    ("content", "rest"), [(b"\xef\xbb\xbfa", b"a"), (b"a\xef\xbb\xbf", b"a\xef\xbb\xbf"), (b"\xef\xbb", b"\xef\xbb")]
)
def test_a_byte_order_mark_is_skipped_at_the_start(content: bytes, rest: bytes) -> None:
    opened = stream(content)
    skip_mark(opened)
    assert opened.read() == rest


def test_the_limit_is_given_in_mebibytes() -> None:
    assert too_long().detail == "the row is longer than 16 MiB"
    assert too_long(3 << 20).detail == "the row is longer than 3 MiB"
