"""Documented commands that a reader types in a clone of the repository, and those that send a result elsewhere."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from documented import IN_A_CLONE, ONE_TEST
from documents import ROOT
from http_servers import QuietHandler
from hub import Hub

pytestmark = pytest.mark.nightly

HOOKS, INSTALL, CLIENT, SEND, UPLOAD, TOOL = IN_A_CLONE
CATALOGUE = "http://marquez:5000"
EVENTS: list[dict[str, Any]] = [{"run": {"runId": "one's own"}, "eventType": kind} for kind in ("START", "COMPLETE")]
EVENTS[1]["inputs"] = [{"name": f"part-{number:05}"} for number in range(9000)]  # longer than an argument may be


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the environment of `make setup`."""
    folder = tmp_path_factory.mktemp("clone") / "repository"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True, capture_output=True)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    return folder


def call(folder: Path, command: str, path: Path | None = None, **variables: str) -> str:
    environment = os.environ | variables | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def catalogue() -> Iterator[tuple[str, list[Any]]]:
    """Address of a server that takes lineage events, and those that it took."""
    taken: list[Any] = []

    class Catalogue(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_event = (self.path, self.headers["Content-Type"]) == ("/api/v1/lineage", "application/json")
            if is_event:
                taken.append(json.loads(body))
            self.send_response(201 if is_event else 400)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Catalogue)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    server.server_close()


def test_the_hooks_of_a_clone_are_installed(clone: Path) -> None:
    assert re.search(IN_A_CLONE[HOOKS], call(clone, HOOKS))
    assert "pre-commit" in (clone / ".git" / "hooks" / "pre-commit").read_text()


def test_the_plugin_is_installed_into_an_environment_where_kubectl_finds_it(clone: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "own")], check=True)
    programs = tmp_path / "own" / "bin"
    assert re.search(IN_A_CLONE[INSTALL], call(clone, INSTALL, programs), re.DOTALL)
    assert "lineage" in call(clone, f"{programs}/kubectl-finetune --help")
    heavy = call(clone, f"{programs}/python -c 'import importlib.util as u; print(u.find_spec(\"torch\"))'")
    assert heavy.strip() == "None"


def test_the_client_is_installed_without_what_it_does_not_need(clone: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "own")], check=True)
    programs = tmp_path / "own" / "bin"
    assert re.search(IN_A_CLONE[CLIENT], call(clone, CLIENT, programs), re.DOTALL)
    code = "import sys, importlib.util as u; from finetune_client import FineTuneClient; "
    code += "print([n for n in ('kopf', 'torch', 'boto3', 'rich', 'typer') if u.find_spec(n)], 'kopf' in sys.modules)"
    assert call(clone, f'{programs}/python -c "{code}"').strip() == "[] False"


def test_the_tool_that_checks_and_estimates_is_installed_in_one_line(clone: Path, tmp_path: Path) -> None:
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    call(clone, TOOL, Path(sys.executable).parent, **places)
    assert "estimate" in call(clone, f"{tmp_path}/bin/finetune-trainer --help")
    heavy = call(
        clone,
        f"{tmp_path}/tools/finetune-operator/bin/python -c 'import importlib.util as u; print(u.find_spec(\"torch\"))'",
    )
    assert heavy.strip() == "None"


@pytest.mark.parametrize("command", ONE_TEST)
def test_one_test_runs_as_the_page_about_tests_shows(clone: Path, command: str) -> None:
    assert re.search(ONE_TEST[command], call(clone, command))


def test_lineage_events_are_sent_to_a_catalogue_line_by_line(tmp_path: Path, catalogue: tuple[str, list[Any]]) -> None:
    address, taken = catalogue
    (tmp_path / "openlineage.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    call(tmp_path, SEND.replace(CATALOGUE, address))
    assert taken == EVENTS


def test_an_adapter_is_put_on_a_hub_with_its_card_at_the_top(tmp_path: Path) -> None:
    files = {"README.md": "---\nlibrary_name: peft\n---\n# one\n", "adapter_config.json": "{}", "a/b.json": "[]"}
    for name, text in files.items():
        path = tmp_path / "adapter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "hub").mkdir()
    with Hub(tmp_path / "hub", organisations={"my-org": "write"}).serving() as hub:
        place = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
        place["HF_HUB_OFFLINE"] = "0"  # a trainer that was imported here has set it
        told = call(tmp_path, UPLOAD, Path(sys.executable).parent, **place)
    assert re.search(IN_A_CLONE[UPLOAD], told)
    taken = tmp_path / "hub" / "models" / "my-org" / "support-bot"
    assert {name: (taken / name).read_text() for name in files} == files
