"""Programs of other projects as pods of the deployed cluster, with the fixtures of the end-to-end tests."""

import pytest
from other_tests import load_tests

_e2e = load_tests("e2e/conftest.py")
_kubeconfig = _e2e._kubeconfig
s3 = _e2e.s3
bench = _e2e.bench
chart = _e2e.chart


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Require no vLLM, which the tests in the folder above need."""
