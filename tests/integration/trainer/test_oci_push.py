"""Pushes of a published result to a real registry, what is pulled from it, and registries that break the protocol."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from http_servers import QuietHandler
from oci_registry import KEY, PASSWORD, Registry, running_registry
from trainer_world import World

from finetune_api.handoff import ExitCode, Outcome, Report
from finetune_api.output import RegistryPush
from finetune_trainer.entrypoints.pod import find_published
from finetune_trainer.errors import Stopped, StorageUnavailable, TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.publishing import oci_push
from finetune_trainer.publishing.publish import publish
from finetune_trainer.publishing.pushes import check_pushes, push_published
from finetune_trainer.storage.oci import connection, registry

FILES: dict[str, dict[str, bytes]] = {
    "adapter": {
        "README.md": b"# Helpdesk\n", "adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 9_000_001,
    },
    "merged": {
        "config.json": b"{}", "model-00001-of-00002.safetensors": b"a" * 1000,
        "model-00002-of-00002.safetensors": b"b" * 1000,
    },
    "gguf": {"Modelfile": b"FROM model-Q8_0.gguf\n", "model-Q8_0.gguf": b"g" * 1000},
}  # fmt: skip
MakeJob = Callable[..., World]


@pytest.fixture(scope="module")
def server(
    program: Callable[[str], str], certificates: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    with running_registry(program("registry"), tmp_path_factory.mktemp("registry"), certificates) as running:
        yield running


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the Secrets are mounted in; a push waits no longer than a test."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setattr(connection.connect_registry, "__defaults__", (folder, folder))
    monkeypatch.setattr(oci_push, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(oci_push, "CHECK_SECONDS", 0.5)
    return folder


@pytest.fixture
def job(world: World, secrets: Path) -> MakeJob:
    """Make a job that pushes to a registry, with the Secrets of its user."""

    def make(host: str, spec: dict[str, Any] | None = None, **fields: Any) -> World:
        own = {"repository": f"{host}/team/helpdesk", "credentialsSecretRef": {"name": "push"}} | fields
        return world.with_config({"output": {"uri": "s3://bucket/out", "oci": own} | (spec or {})})

    return make


def with_user(job: MakeJob, secrets: Path, server: Registry, **fields: Any) -> World:
    assert server.authority
    (secrets / ".dockerconfigjson").write_bytes(server.docker_config)
    (secrets / "ca.crt").write_bytes(server.authority.read_bytes())
    return job(server.host, caSecretRef={"name": "ca"}, **fields)


def published(world: World, *folders: str, outcome: Outcome = Outcome.PUBLISHED) -> Report:
    result = world.workspace / "result"
    for folder in folders or ("adapter",):
        (result / folder).mkdir(parents=True, exist_ok=True)
        for name, content in FILES[folder].items():
            (result / folder / name).write_bytes(content)
    (result / "finetune_report.md").write_text("# Rows of the customer\n")
    config = world.config
    report = Report(
        outcome=outcome, reason="Published", message="m", job_uid=config.uid, config_sha256=config.config_sha256
    )
    return publish(world.run, result, report)


def pushed(world: World, report: Report) -> RegistryPush:
    found = push_published(world.run, report)
    assert found.outcome is report.outcome
    assert found.artifacts
    assert found.artifacts.oci
    return found.artifacts.oci


def in_models(folder: str) -> dict[str, bytes]:
    return {f"models/{name}": content for name, content in FILES[folder].items()}


def test_a_published_adapter_is_pulled_by_its_digest_from_a_registry_with_users(
    job: MakeJob, secrets: Path, server: Registry
) -> None:
    world = with_user(job, secrets, server)
    check_pushes(world.run)
    report = published(world)
    found = pushed(world, report)
    assert found.message is None
    assert (found.repository, found.tag) == (f"{server.host}/team/helpdesk", "job")
    assert (found.reference or "").startswith(f"{server.host}/team/helpdesk@sha256:")
    assert server.pull(found.reference or "") == in_models("adapter")
    manifest = server.manifest(f"{found.repository}:job")
    assert manifest["annotations"]["finetune.dev/job"] == "team/job"
    assert report.artifacts
    assert manifest["annotations"]["finetune.dev/manifest-sha256"] == report.artifacts.manifest_sha256


def test_a_run_that_finds_the_result_pushes_what_is_in_storage_and_uploads_nothing_twice(
    job: MakeJob, secrets: Path, server: Registry
) -> None:
    world = with_user(job, secrets, server, tag="again")
    report = published(world)
    first = pushed(world, report)
    before = server.uploads()
    assert before > 0
    (world.workspace / "result" / "adapter" / "README.md").write_text("another workspace")
    assert pushed(world, report.model_copy(update={"outcome": Outcome.ADOPTED})) == first
    assert server.uploads() == before
    assert not (world.workspace / "oci-push").exists()


@pytest.mark.parametrize("find", [preflight, find_published], ids=["preflight", "trainer"])
def test_a_job_that_is_created_again_with_a_correct_registry_adopts_its_result_and_pushes_it(
    world: World, job: MakeJob, secrets: Path, server: Registry, find: Callable[..., Report | None]
) -> None:
    published(world.with_config())
    before = world.config.config_sha256
    report = find(with_user(job, secrets, server).run)
    assert world.config.config_sha256 == before
    assert report
    assert report.artifacts
    assert report.artifacts.oci
    assert server.pull(report.artifacts.oci.reference or "") == in_models("adapter")


def test_model_adapter_and_gguf_files_have_tags_of_their_own(job: MakeJob, secrets: Path, server: Registry) -> None:
    world = with_user(job, secrets, server, tag="v2", spec={"merge": "BF16", "gguf": ["Q8_0"]})
    found = pushed(world, published(world, "adapter", "merged", "gguf"))
    for tag, folder, reference in (
        ("v2", "merged", found.reference),
        ("v2-adapter", "adapter", found.adapter_reference),
        ("v2-gguf", "gguf", found.gguf_reference),
    ):
        assert server.pull(f"{found.repository}:{tag}") == server.pull(reference or "") == in_models(folder)


def test_a_model_pack_has_plain_files(job: MakeJob, secrets: Path, server: Registry) -> None:
    world = with_user(job, secrets, server, tag="pack", format="ModelPack")
    found = pushed(world, published(world))
    assert server.pull(found.reference or "") == FILES["adapter"]
    assert server.manifest(found.reference or "")["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


def test_a_registry_without_users_and_tls_needs_no_secret(
    job: MakeJob, program: Callable[[str], str], tmp_path: Path
) -> None:
    with running_registry(program("registry"), tmp_path / "plain") as plain:
        world = job(plain.host, insecure=True, credentialsSecretRef=None)
        check_pushes(world.run)
        assert plain.pull(pushed(world, published(world)).reference or "") == in_models("adapter")
        encrypted = job(plain.host, credentialsSecretRef=None)
        with pytest.raises(StorageUnavailable, match=r"TLS fails: set spec\.output\.oci\.caSecretRef, or insecure"):
            check_pushes(encrypted.run)


def test_a_wrong_password_is_refused_before_the_training_and_costs_no_result_after_it(
    job: MakeJob, secrets: Path, server: Registry, caplog: Any, capfd: Any
) -> None:
    world = with_user(job, secrets, server)
    (secrets / ".dockerconfigjson").write_text(f'{{"auths": {{"{server.host}": {{"auth": "dHVuZXI6c2VjcmV0Mg=="}}}}}}')
    with pytest.raises(TrainerError, match=r"refuses the password in the Secret push \(401") as caught:
        check_pushes(world.run)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    report = published(world)
    found = pushed(world, report)
    assert found.reference is None
    assert "delete the job and create it again: the published result is adopted and pushed" in (found.message or "")
    text = "".join([found.message or "", *capfd.readouterr(), *(one.getMessage() for one in caplog.records)])
    assert "secret2" not in text
    assert "dHVuZXI6c2VjcmV0Mg" not in text
    (secrets / ".dockerconfigjson").write_bytes(server.docker_config)
    assert server.pull(pushed(world, report).reference or "") == in_models("adapter")


Respond = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def hostile(respond: Respond) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that responds as it likes; its host, and each request with its Authorization."""
    seen: list[tuple[str, str]] = []

    class Handler(QuietHandler):
        def respond(self) -> None:
            seen.append((f"{self.command} {self.path}", self.headers.get("Authorization", "")))
            respond(self)

    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.respond)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{running.server_address[1]}", seen
    finally:
        running.shutdown()
        running.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def with_key(secrets: Path, host: str) -> None:
    (secrets / ".dockerconfigjson").write_bytes(Registry(host, Path()).docker_config)


@pytest.mark.parametrize("place", ["redirect", "upload"])
def test_no_key_and_no_file_follow_a_registry_to_another_host(job: MakeJob, secrets: Path, place: str) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        target = f"http://localhost:{other.rpartition(':')[2]}{handler.path}"
        if not handler.headers.get("Authorization"):
            answer(handler, 401, WWW_Authenticate='Basic realm="x"')
        elif handler.command == "HEAD":
            answer(handler, 404)
        else:
            answer(handler, 307 if place == "redirect" else 202, Location=target)

    with hostile(lambda handler: answer(handler, 201)) as (other, stolen), hostile(respond) as (host, seen):
        with_key(secrets, host)
        world = job(host, insecure=True)
        words = "redirects the push" if place == "redirect" else "names an upload on another host"
        with pytest.raises(TrainerError, match=words):
            check_pushes(world.run)
        assert words in (pushed(world, published(world)).message or "")
        assert (f"Basic {KEY}") in {given for _, given in seen}
    assert stolen == []


def test_a_registry_that_stores_other_content_is_not_believed(job: MakeJob, secrets: Path) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.command == "POST":
            answer(handler, 202, Location=f"{handler.path}1")
        elif handler.command == "PUT":
            answer(handler, 201, Docker_Content_Digest=f"sha256:{'0' * 64}")
        else:
            answer(handler, 404)

    with hostile(respond) as (host, _):
        world = job(host, insecure=True, credentialsSecretRef=None)
        assert "stored other content than sha256:" in (pushed(world, published(world)).message or "")


def test_a_registry_that_never_answers_costs_limited_time_and_is_left_at_sigterm(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(registry, "TIMEOUT", httpx2.Timeout(0.3))
    with hostile(lambda _handler: release.wait(20) and None) as (host, _):
        world = job(host, insecure=True, credentialsSecretRef=None)
        report = published(world)
        begin = time.monotonic()
        assert "cannot be reached (ReadTimeout)" in (pushed(world, report).message or "")
        monkeypatch.setattr(registry, "TIMEOUT", httpx2.Timeout(60.0))
        monkeypatch.setattr(oci_push, "IDLE_SECONDS", 0.3)
        assert "does not respond for 0 seconds" in (pushed(world, report).message or "")
        world.stop.set()
        with pytest.raises(Stopped):
            push_published(world.run, report)
        assert time.monotonic() - begin < 15
        release.set()


def test_nothing_is_pushed_of_a_result_that_did_not_meet_its_gate_or_of_a_run_without_a_cluster(job: MakeJob) -> None:
    world = job("127.0.0.1:9")
    report = published(world, outcome=Outcome.GATE_NOT_MET)
    assert push_published(world.run, report) == report
    world.config = world.config.model_copy(update={"is_local": True})
    local = report.model_copy(update={"outcome": Outcome.PUBLISHED})
    assert push_published(world.run, local) == local
    check_pushes(world.run)


def test_no_password_is_in_the_message_of_a_registry_that_repeats_it(job: MakeJob, secrets: Path) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        if not handler.headers.get("Authorization"):
            answer(handler, 401, WWW_Authenticate='Basic realm="x"')
            return
        body = f'{{"errors": [{{"code": "DENIED", "message": "{PASSWORD} {KEY} https://x/?sig=hidden"}}]}}'.encode()
        handler.send_response(403)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with hostile(respond) as (host, _):
        with_key(secrets, host)
        with pytest.raises(TrainerError, match=r"\(403: DENIED … … …\)"):
            check_pushes(job(host, insecure=True).run)
