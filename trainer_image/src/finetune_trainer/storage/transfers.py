"""Several objects at once: a small one takes a request's answer, not its bytes."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

SMALL_BYTES = 16 * 1024 * 1024
"""A larger object has its parts in flight, and comes alone: each part is in memory."""
AT_ONCE = 8

Transfer = tuple[int, Callable[[], None]]
"""The size of an object, and the call that transfers it."""


def transfer_all(transfers: Iterable[Transfer]) -> None:
    """Call every transfer: small ones at once, and at the same time the large ones, one after another.

    Raises the first error, after the transfers that had begun have ended; the others are not begun.
    """
    small, large = list[Callable[[], None]](), list[Callable[[], None]]()
    for size, call in transfers:
        (small if size < SMALL_BYTES else large).append(call)
    failed = threading.Event()

    def begin(call: Callable[[], None]) -> None:
        if failed.is_set():
            return
        try:
            call()
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer") as pool:
        begun = [pool.submit(begin, call) for call in small]
        for call in large:
            begin(call)
    for one in begun:
        one.result()
