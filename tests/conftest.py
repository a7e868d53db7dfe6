"""For every test: nothing is judged by how long it takes, for the machine may have other work; the longest begin."""

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LONGEST_FIRST = (
    "test_ranks", "test_real_model", "test_nodes", "test_examples", "test_storage_faults", "test_resume", "test_models",
    "test_s3_faults", "test_objectives", "test_kubectl_plugin", "test_causes", "test_trainer_pod", "test_gate",
    "test_trainer_commands", "test_absence",
)  # fmt: skip
"""Files of minutes. Begun last, one of them would keep one process busy while the other has nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
