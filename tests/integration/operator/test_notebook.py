"""The notebook of the documentation, cell by cell, on a real API server and a real S3 server."""

import ast
import asyncio
import hashlib
import inspect
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pod_reports import published_blocks
from s3_world import aws_environment, bucket, certificates, s3_server

from finetune_api.handoff import Artifact, Manifest, Outcome, Report

__all__ = ["aws_environment", "bucket", "certificates", "s3_server"]
ROOT = Path(__file__).parents[3]
GUIDE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "notebook.ipynb"
KERNEL = ROOT / ".venv" / "notebook" / "bin" / "python"
FILES = {"finetune_report.md": b"# Better\n", "adapter/adapter_config.json": b"{}", "adapter/README.md": b"# Card\n"}


def cells() -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(one["source"]) for one in content["cells"] if one["cell_type"] == "code"]


def run(code: str, variables: dict[str, Any]) -> Any:
    """Run a cell as a kernel does, with `await` at its top level; return the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    found = None
    for part in (tree, ast.Expression(last.value) if isinstance(last, ast.Expr) else None):
        if part is not None:
            mode = "eval" if isinstance(part, ast.Expression) else "exec"
            compiled = compile(part, "cell", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            found = eval(compiled, variables)
            found = asyncio.run(found) if inspect.iscoroutine(found) else found
    return found


def publish(s3: Any, bucket: str) -> str:
    """Put a result where the trainer would; return the digest of its manifest."""
    files = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    ]
    result = Report(outcome=Outcome.PUBLISHED, reason="Published", message="", job_uid="u", config_sha256="c" * 64)
    manifest = Manifest.model_validate(
        {"namespace": "team", "name": "one", "uid": "u", "configSHA256": "c" * 64, "files": files, "result": result}
    )
    data = manifest.model_dump_json(by_alias=True, exclude_none=True).encode()
    for name, body in {**FILES, Artifact.MANIFEST.value: data}.items():
        s3.put_object(Bucket=bucket, Key=f"support-bot/{name}", Body=body)
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def at_home(control_plane: Path, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's folder, with the namespace as that of the kubeconfig."""
    content = yaml.safe_load(control_plane.read_text())
    content["contexts"][0]["context"]["namespace"] = world.namespace
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(  # noqa: PLR0917
    world: Any,
    operator: Any,
    s3_server: Any,
    bucket: str,
    aws_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    wait: Any,
) -> Callable[[], tuple[str, str]]:
    """Bring the job to its end while the test waits; return where its result is, and the digest."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    digest, uri = publish(s3_server.client(), bucket), f"s3://{bucket}/support-bot"

    def train() -> None:
        wait(world.jobs, "the Job of preflight", 240)  # a kernel takes its time to start
        pod = world.pass_preflight("support-bot")
        world.run(pod)
        world.wait_phase("Training", "support-bot")
        artifacts = {
            **published_blocks()["artifacts"],
            "uri": uri,
            "reportURI": f"{uri}/finetune_report.md",
            "manifestSHA256": digest,
        }
        world.end(pod, 0, world.published("support-bot", artifacts=artifacts, evaluation={"verdict": "Better"}))

    def start() -> tuple[str, str]:
        threading.Thread(target=train, daemon=True).start()
        return uri, digest

    return start


def test_the_notebook_runs_from_the_spec_to_the_adapter(
    at_home: Path, trained: Callable[[], tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    connect, create, wait, report, download = cells()
    variables: dict[str, Any] = {}
    run(connect, variables)
    page = run(create, variables)._repr_html_()
    assert "no operator has observed it yet" in page
    uri, digest = trained()
    run(wait, variables)
    assert capsys.readouterr().out.splitlines()[-3:] == ["Better", uri, digest]
    assert run(report, variables)._repr_markdown_() == "# Better\n"
    paths = run(download, variables)
    assert sorted(os.fspath(one) for one in paths) == [
        "support-bot/adapter/README.md",
        "support-bot/adapter/adapter_config.json",
    ]
    assert (at_home / "support-bot" / "adapter" / "adapter_config.json").read_bytes() == b"{}"


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
try:
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.nightly
def test_a_real_kernel_shows_the_picture_and_the_report(
    world: Any, at_home: Path, trained: Callable[[], tuple[str, str]]
) -> None:
    assert KERNEL.exists(), "make notebook installs the kernel"
    sources = os.pathsep.join(str(ROOT / one) for one in ("crds/src", "operator/src"))
    command = [str(KERNEL), "-c", EXECUTE, str(NOTEBOOK), str(at_home / "out.ipynb")]
    uri, digest = trained()
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": sources}, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((at_home / "out.ipynb").read_text(encoding="utf-8"))
    _, created, waited, report, _ = [one["outputs"] for one in content["cells"] if one["cell_type"] == "code"]
    assert "<progress" in "".join(created[0]["data"]["text/html"])
    (picture,) = [one for one in waited if one["output_type"] == "display_data"]
    assert f"{world.namespace}/support-bot</strong> Succeeded" in "".join(picture["data"]["text/html"])
    assert "Succeeded" in "".join(picture["data"]["text/plain"])
    assert "".join(waited[-1]["text"]).splitlines() == ["Better", uri, digest]
    assert "".join(report[0]["data"]["text/markdown"]) == "# Better\n"


def test_the_guide_runs_as_it_is_written(
    world: Any, at_home: Path, trained: Callable[[], tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    create, watch, result, errors, logs = re.findall(
        r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    variables: dict[str, Any] = {}
    run(create.replace('"team-a"', repr(world.namespace)), variables)
    uri, digest = trained()
    run(watch, variables)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] in {"Pending", "Preflight"}  # by who is faster, the operator or the watch
    assert lines[-1] == "Succeeded 24 0.9 1.2 None"
    run(result, variables)
    assert capsys.readouterr().out == f"Better 1.2 {uri} {digest}\n# Better\n\n"
    run(errors, variables)
    assert variables["result"].digest == digest
    run(logs, variables)
    assert capsys.readouterr().out == ""  # the kubelet that the test plays has no log
