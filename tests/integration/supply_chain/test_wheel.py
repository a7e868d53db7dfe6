"""The wheel, and what `uvx` installs of it from a package index, apart from everything else on this machine."""

import email.message
import email.parser
import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import INSTALL
from tiny_model import make_tiny_model

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).parent
LARGEST_BYTES = 100 * 10**6
"""What the extra `check` may take when it is installed."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def read_metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for source in ("crds/src", "operator/src", "trainer_image/src"):
        listed = subprocess.run(["git", "ls-files", source], cwd=ROOT, check=True, capture_output=True, text=True)
        files = {Path(line).relative_to(source).as_posix() for line in listed.stdout.splitlines()}
        assert files
        assert files - packed == set()


def test_the_extra_check_names_nothing_that_trains(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert {"check", "client", "kubectl", "preflight", "trainer"} <= set(metadata.get_all("Provides-Extra", []))
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra == 'check'" in line]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0] for line in required}
    assert {"tokenizers", "orjson", "typer"} <= names
    assert names & {"torch", "transformers", "pyarrow", "numpy", "boto3", "kubernetes"} == set()


@pytest.fixture(scope="module")
def index(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a package index with this wheel alone; everything else comes from PyPI."""
    root = tmp_path_factory.mktemp("index")
    project = root / "simple" / "finetune-operator"
    project.mkdir(parents=True)
    (project / wheel.name).write_bytes(wheel.read_bytes())
    (project / "index.html").write_text(f'<!doctype html><a href="{wheel.name}">{wheel.name}</a>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has: rows, a manifest and a model."""
    rows = [{"question": f"Which port has gateway {n}?", "answer": f"Port {8000 + n}."} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.yaml").write_text((ROOT / "crds" / "examples" / "chat.yaml").read_text())
    make_tiny_model(tmp_path / "model")
    return tmp_path


def call(folder: Path, command: str, **variables: str) -> str:
    own = {
        "PATH": f"{UV}:{os.environ['PATH']}",
        "NO_PROXY": "127.0.0.1",
        "UV_TOOL_DIR": str(folder / "tools"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
        "UV_PYTHON": sys.executable,
        "UV_NO_CONFIG": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | own | variables, check=False, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.nightly
def test_the_documented_line_checks_rows_with_nothing_installed_before(folder: Path, index: str) -> None:
    (line,) = INSTALL
    seen = call(folder, line.replace("https://pypi.example.org/simple", index))
    assert re.search(INSTALL[line], seen)


@pytest.mark.nightly
def test_the_installed_tool_is_small_and_checks_estimates_and_validates(folder: Path, index: str) -> None:
    call(folder, f"uv tool install --index {index} 'finetune-operator[check]'")
    installed = folder / "tools" / "finetune-operator"
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < LARGEST_BYTES
    assert not list(installed.rglob("site-packages/torch"))
    bin_folder = folder / "bin"
    assert "QLoRA" in call(folder, f"{bin_folder}/finetune-trainer estimate model --gpu-memory 24Gi")
    assert "is valid" in call(folder, f"{bin_folder}/kubectl-finetune validate job.yaml --rows rows.jsonl")


@pytest.mark.nightly
def test_the_plugin_is_installed_from_the_index(folder: Path, index: str) -> None:
    command = f"uvx --index {index} --from 'finetune-operator[kubectl]' kubectl-finetune validate job.yaml"
    assert "is valid" in call(folder, command)
