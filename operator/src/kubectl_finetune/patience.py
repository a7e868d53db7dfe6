"""Following a job for hours outlives an API server that is away for a minute."""

import time
from collections.abc import Callable
from typing import TypeVar

from kubectl_finetune.errors import Unreachable

RETRIES = 30
_T = TypeVar("_T")


def patiently(look: Callable[[], _T], interval: float) -> _T:
    """The answer, asked for again where nothing answers; who is refused is told at once."""
    for _ in range(RETRIES):
        try:
            return look()
        except Unreachable:
            time.sleep(interval)
    return look()
