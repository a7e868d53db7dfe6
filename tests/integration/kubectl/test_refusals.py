"""What the plugin says when the API server refuses: a missing right, a missing CRD, a stranger."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from kubectl_finetune.__main__ import main

CLUSTER = [sys.executable, str(Path(__file__).parents[2] / "cluster" / "cluster.py"), "control-plane"]


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., str]:
    """`kubectl-finetune …` in this process with a kubeconfig; what it complains of, with its exit code."""

    def call(kubeconfig: Path, *arguments: str, code: int) -> str:
        monkeypatch.setattr(sys, "argv", ["kubectl-finetune", "--kubeconfig", str(kubeconfig), *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        found = capfd.readouterr()
        assert ended.value.code == code, found
        return str(found.err)

    return call


def with_token(kubeconfig: Path, token: str, path: Path) -> Path:
    content = yaml.safe_load(kubeconfig.read_text())
    content["users"] = [{"name": content["users"][0]["name"], "user": {"token": token}}]
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_user_without_rights_gets_verb_and_resource(
    control_plane: Path, finetune: Callable[..., str], tmp_path: Path
) -> None:
    with config.new_client_from_config(str(control_plane)) as api:
        core = client.CoreV1Api(api)
        core.create_namespaced_service_account("default", {"metadata": {"name": "nobody"}})
        token = core.create_namespaced_service_account_token("nobody", "default", {"spec": {}}).status.token
    nobody = with_token(control_plane, token, tmp_path / "nobody.yaml")
    error = finetune(nobody, "list", "-n", "default", code=4)
    assert 'cannot list resource "finetunejobs" in API group "finetune.dev" in the namespace "default"' in error
    assert 'cannot get resource "finetunejobs"' in finetune(nobody, "describe", "one", code=4)
    assert 'cannot get resource "finetunejobs"' in finetune(nobody, "suspend", "one", code=4)


def test_a_user_without_credentials_gets_the_advice_to_log_in(
    control_plane: Path, finetune: Callable[..., str], tmp_path: Path
) -> None:
    stranger = with_token(control_plane, "forged", tmp_path / "stranger.yaml")
    assert "the cluster does not accept your credentials (401)" in finetune(stranger, "list", code=4)


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A control plane where nobody has installed anything."""
    folder = str(tmp_path_factory.mktemp("bare"))
    done = subprocess.run([*CLUSTER, "up", "--dir", folder], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    try:
        yield Path(done.stdout.strip())
    finally:
        subprocess.run([*CLUSTER, "down", "--dir", folder], check=True, capture_output=True)


def test_a_missing_crd_is_distinguished_from_a_missing_job(
    control_plane: Path, bare: Path, finetune: Callable[..., str]
) -> None:
    for command in (("list",), ("list", "-A"), ("describe", "one"), ("cancel", "one", "--yes")):
        assert "the operator's CustomResourceDefinition is not installed" in finetune(bare, *command, code=3)
    assert "no FineTuneJob one in namespace default" in finetune(control_plane, "describe", "one", code=3)


@pytest.mark.parametrize("command", ["list", "compare"])
def test_a_text_that_is_not_a_selector_is_refused_with_how_to_write_one(
    control_plane: Path, finetune: Callable[..., str], command: str
) -> None:
    said = finetune(control_plane, command, "-l", "team=a=b", code=2)
    assert "team=a=b is not a label selector: found '=', expected: ',' or 'end of string'" in said
    assert "write key=value or key!=value, with commas between" in said
