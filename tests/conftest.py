"""For every test: no deadlines, and the same examples in each run unless HYPOTHESIS_PROFILE is random."""

import gc
import os

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=10)
settings.register_profile("random", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_finish() -> None:
    """Leave the collected tests and modules out of garbage collection, which took a sixth of the unit tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
