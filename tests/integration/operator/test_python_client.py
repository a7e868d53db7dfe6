"""The Python client as a program uses it, on jobs that the real operator brings through their life."""

import asyncio
import base64
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway import Answer, Gateway, api_error
from kubernetes import client as kubernetes_client
from kubernetes import config
from pod_reports import published_blocks

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_client import (
    Conflict,
    FineTuneClient,
    Forbidden,
    InvalidJob,
    JobDeleted,
    JobFailed,
    JobProgress,
    NotFound,
    WaitTimeout,
)

SPEC: dict[str, Any] = {
    "objective": "Chat",
    "storage": {"endpoint": "http://storage.example:9000", "credentialsSecretRef": {"name": "s3"}},
    "model": {"uri": "s3://bucket/models/tiny"},
    "dataset": {"train": {"uri": "s3://bucket/data/rows.jsonl"}, "validationSplitPercent": 10},
    "output": {"uri": "s3://bucket/jobs/one"},
    "resources": {"gpusPerNode": 1},
}
PUBLISHED = {
    "artifacts": {
        **published_blocks()["artifacts"],
        "adapterURI": "s3://bucket/jobs/one/adapter",
        "reportURI": "s3://bucket/jobs/one/finetune_report.md",
    },
    "evaluation": {"verdict": "Better", "change": "-52 %", "gate": "NotConfigured"},
}


@pytest.fixture
def finetune(control_plane: Path, world: Any) -> FineTuneClient:
    return FineTuneClient(world.namespace, kubeconfig=control_plane)


@pytest.fixture
def lately() -> Callable[..., threading.Thread]:
    """Run a step of the test while the main thread waits for the client."""

    def start(step: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=step, daemon=True)
        thread.start()
        return thread

    return start


def spec() -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(SPEC)


def train(world: Any, **blocks: Any) -> None:
    """What the kubelet reports of a job that trains and publishes."""
    pod = world.pass_preflight()
    world.run(pod)
    world.wait_phase("Training")
    world.end(pod, 0, world.published(**{**PUBLISHED, **blocks}))


def test_a_typed_job_is_created_watched_and_has_a_typed_result(
    world: Any, operator: Any, finetune: FineTuneClient, lately: Any
) -> None:
    job = finetune.create("one", spec(), labels={"team": "support"})
    assert (job.name, job.namespace, job.spec.model.uri) == ("one", world.namespace, "s3://bucket/models/tiny")
    seen: list[JobProgress] = []

    async def watch() -> None:
        async for progress in job.watch(timeout=120):
            if not seen:
                lately(lambda: train(world))
            seen.append(progress)

    asyncio.run(watch())
    phases = list(dict.fromkeys(one.phase for one in seen))
    if phases[0] == "Pending":  # the watch was faster than the operator
        del phases[0]
    assert [phases[0], phases[-1]] == ["Preflight", "Succeeded"]
    assert "Training" in phases
    assert [one.has_ended for one in seen[:-1]] == [False] * (len(seen) - 1)
    result = job.result(timeout=1)
    assert (result.uri, result.digest, result.verdict) == ("s3://bucket/jobs/one", "ab" * 32, "Better")
    assert result.report_uri == "s3://bucket/jobs/one/finetune_report.md"
    assert (result.metrics.eval_loss, result.evaluation.change) == (1.2, "-52 %")
    assert [one.name for one in finetune.list(selector="team=support")] == ["one"]
    assert finetune.list(selector="team=other") == []
    assert "Succeeded" in repr(finetune.get("one"))


def test_the_result_of_a_failed_job_is_an_error_with_its_reason_and_fix(
    world: Any, operator: Any, finetune: FineTuneClient, lately: Any
) -> None:
    job = finetune.create("one", SPEC)

    def fail() -> None:
        pod = world.pod_of("one-preflight")
        world.end(pod, 65, world.report("Failed", message="no row can be trained on: convert the file"))

    lately(fail)
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=120)
    assert (failed.value.reason, failed.value.message) == (
        "DatasetUnusable",
        "no row can be trained on: convert the file",
    )
    assert "logs(preflight=True)" in failed.value.fix
    assert "docs/troubleshooting.md#datasetunusable" in str(failed.value)
    assert failed.value.status.phase == "Failed"
    with pytest.raises(Exception, match="there is nothing to stop"):
        job.stop()


def test_a_job_that_is_deleted_while_it_is_watched_is_an_error_and_not_a_result(
    world: Any, finetune: FineTuneClient, lately: Any
) -> None:
    job = finetune.create("one", SPEC)
    watched = iter(job.watch(timeout=60))
    assert next(watched).message.startswith("no operator has observed it yet")
    lately(lambda: finetune.delete("one"))
    with pytest.raises(JobDeleted, match="one was deleted while it was watched"):
        list(watched)
    finetune.create("one", SPEC)
    with pytest.raises(JobDeleted):
        job.result(timeout=5)
    with pytest.raises(WaitTimeout, match="has not ended within 1 seconds"):
        finetune.get("one").result(timeout=1)


def test_a_job_is_applied_again_stopped_and_resumed(world: Any, operator: Any, finetune: FineTuneClient) -> None:
    job = finetune.apply("one", SPEC)
    world.run(world.pass_preflight())
    world.wait_phase("Training")
    assert finetune.apply("one", {**SPEC, "backoffLimit": 7}).spec.backoff_limit == 7
    with pytest.raises(InvalidJob, match=r"spec\.model"):
        finetune.apply("one", {**SPEC, "model": {"uri": "s3://bucket/models/other"}})
    job.stop()
    world.wait_phase("Suspended")
    job.resume()
    world.wait_condition("Suspended", "NotSuspended")
    finetune.stop("one")
    assert world.get()["spec"]["suspend"] is True
    finetune.delete("one")
    with pytest.raises(NotFound, match="no FineTuneJob one"):
        finetune.get("one")


def test_an_invalid_job_is_refused_by_field_before_the_api_server_is_asked(finetune: FineTuneClient) -> None:
    with pytest.raises(InvalidJob, match=r"(?s)spec\.objetive .*did you mean objective"):
        finetune.create("one", {**SPEC, "objetive": "Chat"})
    with pytest.raises(InvalidJob, match=r"(?s)spec\.output\.uri .*s3://"):
        finetune.create("one", {**SPEC, "output": {"uri": "/tmp/out"}})
    with pytest.raises(InvalidJob, match=r"metadata\.name \"My Job\""):
        finetune.create("My Job", SPEC)
    assert finetune.list() == []
    finetune.create("one", SPEC)
    with pytest.raises(Conflict, match="already exists"):
        finetune.create("one", SPEC)


def test_a_file_is_a_job_too(finetune: FineTuneClient, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "one"}, "spec": SPEC}
    path.write_text(yaml.safe_dump(manifest))
    assert finetune.create(path).name == "one"
    manifest["spec"] = {**SPEC, "objective": "Chatt"}
    path.write_text(yaml.safe_dump(manifest))
    with pytest.raises(InvalidJob, match=r'spec\.objective "Chatt" must be one of'):
        finetune.create(str(path))


READ = ["get", "list", "watch"]
EDIT = ["create", "update", "patch", "delete", "deletecollection"]
"""What the chart's roles for people grant, of FineTuneJobs alone."""


@pytest.fixture
def user(control_plane: Path, world: Any, wait: Any) -> Callable[[list[str]], dict[str, Any]]:
    """Make an account of the namespace with these rights to FineTuneJobs; return its kubeconfig."""

    def make(verbs: list[str]) -> dict[str, Any]:
        api, space, meta = config.new_client_from_config(str(control_plane)), world.namespace, {"name": "user"}
        rbac, core = kubernetes_client.RbacAuthorizationV1Api(api), kubernetes_client.CoreV1Api(api)
        core.create_namespaced_service_account(space, {"metadata": meta})
        rules = [{"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": verbs}]
        rbac.create_namespaced_role(space, {"metadata": meta, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user"}
        subjects = [{"kind": "ServiceAccount", "name": "user", "namespace": space}]
        rbac.create_namespaced_role_binding(space, {"metadata": meta, "roleRef": role, "subjects": subjects})

        def may(verb: str) -> bool:
            asked = {"verb": verb, "group": names.GROUP, "resource": names.PLURAL, "namespace": space}
            body = {"spec": {"user": f"system:serviceaccount:{space}:user", "resourceAttributes": asked}}
            reviews = kubernetes_client.AuthorizationV1Api(api)
            return bool(reviews.create_subject_access_review(body).status.allowed)

        wait(lambda: all(map(may, verbs)), "that the API server has read the role and its binding")
        token = core.create_namespaced_service_account_token("user", space, {"spec": {}}).status.token
        content: dict[str, Any] = yaml.safe_load(control_plane.read_text())
        content["users"] = [{"name": content["users"][0]["name"], "user": {"token": token}}]
        return content

    return make


def test_a_reader_watches_and_a_missing_right_is_named(
    world: Any, finetune: FineTuneClient, user: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "reader.yaml"
    path.write_text(yaml.safe_dump(user(READ)))
    reader = FineTuneClient(world.namespace, kubeconfig=path)
    assert re.fullmatch(rf"<FineTuneClient {world.namespace} at https?://\S+:\d+>", repr(reader))
    finetune.create("one", SPEC)
    watched = iter(reader.get("one").watch(timeout=30))
    assert next(watched).phase == "Pending"
    world.patch_spec("one", {"backoffLimit": 5})
    assert next(watched).phase == "Pending"
    with pytest.raises(Forbidden, match='cannot create resource "finetunejobs"'):
        reader.create("two", SPEC)
    with pytest.raises(Forbidden, match='cannot patch resource "finetunejobs"'):
        reader.stop("one")


def test_a_watch_outlives_a_restart_of_the_api_server_and_an_expired_version(  # noqa: PLR0917
    user: Callable[..., dict[str, Any]], world: Any, operator: Any, tmp_path: Path, lately: Any, wait: Any
) -> None:
    content = user(READ + EDIT)
    cluster = content["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("https://").partition(":")
    authority = tmp_path / "ca.crt"
    authority.write_bytes(_decoded(cluster, "certificate-authority"))
    with Gateway(host, int(port), authority).serving() as gateway:
        content["clusters"][0]["cluster"] = {"server": gateway.url}
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        job = FineTuneClient(world.namespace, kubeconfig=path).create("one", SPEC)
        expired = 0

        def rule(_: str, path: str) -> Answer | None:
            nonlocal expired
            if "watch=true" in path and expired < 2:
                expired += 1
                return api_error(410, "Expired")
            return None

        gateway.rule = rule
        results: list[Any] = []
        waiting = lately(lambda: results.append(job.result(timeout=120)))
        pod = world.pass_preflight()
        wait(lambda: expired == 2, "both answers 410")
        gateway.leave()
        world.run(pod)
        world.wait_phase("Training")
        gateway.come_back()
        wait(lambda: job.phase == "Training", lambda: job.phase)
        gateway.cut()
        world.end(pod, 0, world.published(**PUBLISHED))
        waiting.join(60)
        assert [one.digest for one in results] == ["ab" * 32]


def _decoded(block: dict[str, Any], name: str) -> bytes:
    data = block.get(f"{name}-data")
    return base64.b64decode(data) if data else Path(block[name]).read_bytes()


def test_a_job_that_the_client_created_and_stopped_is_applied_and_anothers_field_needs_force(
    finetune: FineTuneClient, kubectl: Callable[..., str]
) -> None:
    def changed(**fields: Any) -> dict[str, Any]:
        manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "one"}}
        return manifest | {"spec": SPEC | fields}

    finetune.create("one", SPEC | {"backoffLimit": 1})
    assert finetune.apply(changed(backoffLimit=2)).spec.backoff_limit == 2
    finetune.stop("one")
    assert finetune.apply(changed(backoffLimit=3)).spec.suspend is True
    assert finetune.apply(changed(backoffLimit=3, suspend=False)).spec.suspend is False
    patch = '{"spec": {"backoffLimit": 4}}'
    kubectl("patch", "finetunejob", "one", "-n", finetune.namespace, "--type=merge", "-p", patch)
    with pytest.raises(Conflict, match="backoffLimit") as refused:
        finetune.apply(changed(backoffLimit=5))
    assert "force=True" in refused.value.fix
    assert finetune.apply(changed(backoffLimit=5), force=True).spec.backoff_limit == 5


def test_what_the_cluster_stores_can_be_applied_and_created_again(world: Any, finetune: FineTuneClient) -> None:
    stored = finetune.create("one", SPEC).manifest
    changed = stored | {"spec": stored["spec"] | {"suspend": True}}
    assert finetune.apply(changed, force=True).spec.suspend is True
    finetune.delete("one")
    assert finetune.create(stored).spec.suspend is not True
