"""Programs of other projects as pods of the deployed cluster, with the fixtures of the end-to-end tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

E2E = Path(__file__).parents[2] / "e2e" / "conftest.py"
_spec = importlib.util.spec_from_file_location("fixtures_of_e2e_tests", E2E)
assert _spec
assert _spec.loader
_e2e = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_e2e)
_kubeconfig = _e2e._kubeconfig
s3 = _e2e.s3
bench = _e2e.bench
chart = _e2e.chart


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Require no vLLM, which the tests in the folder above need."""
