"""The trainer in an environment with vLLM, which another one than that of the servers holds."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("ROLLOUTS_PYTHON", ROOT / ".venv" / "rollouts" / "bin" / "python"))
PACKAGES = [str(ROOT / name / "src") for name in ("crds", "trainer_image")]
VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""What vLLM needs on a small machine without a GPU."""


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Nothing is served here."""
    assert PYTHON.exists(), "vLLM is not installed: make serving"


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python with the trainer's packages and vLLM."""
    for name, value in {**VARIABLES, "PYTHONPATH": os.pathsep.join(PACKAGES)}.items():
        monkeypatch.setenv(name, value)
    return str(PYTHON)
