import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from finetune_client.cluster import connection
from finetune_client.cluster.connection import RETRIES, retry_unreachable
from finetune_client.errors import NotFound, Unreachable


def test_an_unknown_context_is_refused_with_the_known_ones(front: Any, finetune: Callable[..., Any]) -> None:
    done = finetune("list", "--context", "other")
    assert (done.code, "it has lab" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("answer", "exit_code", "message"),
    [
        ((401, b""), 4, "log in again, or renew the token"),
        ((403, {"message": "alice cannot list"}), 4, "alice cannot list\n  ask an administrator for the verb"),
        ((404, {"message": "404 page not found"}), 3, "the operator's CustomResourceDefinition is not installed"),
        ((409, {"message": "conflict"}), 1, "error: conflict\n"),
        ((400, b"[]"), 1, "error: the API server returned 400\n"),
        ((429, {"message": "slow down"}), 5, "error: slow down\n  the API server"),
        ((500, b"<html>"), 5, "error: the API server returned 500\n  the API server"),
    ],
)
def test_a_refusal_has_its_exit_code_and_a_fix(
    front: Any, finetune: Callable[..., Any], answer: tuple[int, Any], exit_code: int, message: str
) -> None:
    front.answers["finetunejobs"] = [answer]
    done = finetune("list", "--context", "lab")
    assert (done.code, message in done.err) == (exit_code, True), done.err


def test_the_namespace_is_the_options_before_the_contexts(front: Any, finetune: Callable[..., Any]) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    assert finetune("list", "--context", "lab").err == "no jobs in namespace team-a\n"
    assert finetune("list", "--context", "lab", "-n", "other").err == "no jobs in namespace other\n"
    assert finetune("list", "--context", "lab", "-A").err == "no jobs in any namespace\n"
    paths = [path.partition("?")[0] for _, path, _ in front.requests]
    prefix = "/apis/finetune.dev/v1alpha1"
    assert paths == [
        f"{prefix}/namespaces/team-a/finetunejobs",
        f"{prefix}/namespaces/other/finetunejobs",
        f"{prefix}/finetunejobs",
    ]


def test_a_request_has_the_users_token_and_a_change_is_a_merge_patch(
    front: Any, finetune: Callable[..., Any], job: Any
) -> None:
    front.answers["one"] = [(200, job().raw)]
    assert finetune("suspend", "one", "--context", "lab").code == 0
    read, changed = front.headers
    assert read["authorization"] == changed["authorization"] == "Bearer t"
    assert read["user-agent"] == "kubectl-finetune"
    assert (read["content-type"], changed["content-type"]) == ("application/json", "application/merge-patch+json")


@pytest.mark.parametrize("answers_after", [0, RETRIES, RETRIES + 1])
def test_an_api_server_that_is_away_is_asked_thirty_times_more(answers_after: int) -> None:
    looks: list[int] = []

    def look() -> int:
        looks.append(len(looks))
        if len(looks) <= answers_after:
            raise Unreachable("away")
        return len(looks)

    if answers_after > RETRIES:
        with pytest.raises(Unreachable):
            retry_unreachable(look, 0)
        assert len(looks) == RETRIES + 1 == 31
    else:
        assert retry_unreachable(look, 0) == len(looks) == answers_after + 1


def test_an_error_other_than_an_absent_api_server_is_not_retried() -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        raise NotFound("gone")

    with pytest.raises(NotFound):
        retry_unreachable(look, 0)
    assert len(looks) == 1


def test_a_kubeconfig_without_contexts_or_without_content_is_no_cluster(
    finetune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    monkeypatch.setenv("KUBECONFIG", str(path))
    done = finetune("list", "--context", "lab")
    assert (done.code, "the kubeconfig is missing or empty\n  set KUBECONFIG" in done.err) == (5, True)
    path.write_text("apiVersion: v1\nkind: Config\ncontexts: []\nclusters: []\nusers: []\n")
    done = finetune("list", "--context", "lab")
    assert (done.code, done.err) == (2, "error: the kubeconfig has no context lab\n  it has none\n")


def test_a_context_without_a_namespace_is_the_default_one(front: Any, finetune: Callable[..., Any]) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    path = Path(os.environ["KUBECONFIG"])
    text = path.read_text().replace(", namespace: team-a", "")
    path.write_text(text.replace("current-context: ''", "current-context: lab"))
    assert finetune("list").err == "no jobs in namespace default\n"


def test_in_a_pod_without_a_kubeconfig_its_service_account_is_used(
    front: Any, finetune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    (tmp_path / "namespace").write_text("of-the-pod\n")
    monkeypatch.setattr(connection, "IN_POD", tmp_path / "namespace")

    def load(client_configuration: Any) -> None:
        client_configuration.host = f"http://127.0.0.1:{front.server_address[1]}"
        client_configuration.api_key["authorization"] = "Bearer of-the-pod"

    monkeypatch.setattr(kubernetes.config, "load_incluster_config", load)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert finetune("list").err == "no jobs in namespace of-the-pod\n"
    assert front.headers[-1]["authorization"] == "Bearer of-the-pod"
    for option in (("--context", "lab"), ("--kubeconfig", str(tmp_path / "none"))):
        assert finetune("list", *option).code == 5


def test_a_log_whose_connection_breaks_is_an_unreachable_cluster(
    front: Any, finetune: Callable[..., Any], job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = {
        "name": "p",
        "namespace": "team-a",
        "creationTimestamp": "",
        "annotations": {"finetune.dev/job-name": "one"},
    }
    pod = {"metadata": meta, "status": {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}}
    front.answers = {"one": [(200, job().raw)], "pods": [(200, {"items": [pod]})], "log": [(200, b"step 1\n")]}
    monkeypatch.setattr(front.RequestHandlerClass, "end_headers", _promise_more)
    done = finetune("logs", "one", "--context", "lab")
    assert (done.code, done.out, "http://127.0.0.1" in done.err) == (5, "step 1\n", True)


def _promise_more(handler: Any) -> None:
    if "/log" in handler.path:
        handler.send_header("Content-Length", "99")
    BaseHTTPRequestHandler.end_headers(handler)


@pytest.mark.parametrize("content", [b"contexts: [{", b"\xff\xfe"])
def test_a_kubeconfig_that_is_no_yaml_is_named(finetune: Callable[..., Any], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(content)
    done = finetune("list", "--kubeconfig", str(path))
    assert done.code == 5
    assert done.err.startswith(f"error: the kubeconfig {path} cannot be read: ")


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("token: topsecret: 1", "line 5: "),
        ('password: "topsecret', "line 6: found unexpected end of stream"),
        ("client-certificate-data: topsecret1", "Incorrect padding"),
    ],
)
def test_a_broken_user_of_a_kubeconfig_is_named_without_its_secret(
    finetune: Callable[..., Any], tmp_path: Path, user: str, reason: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(
        "current-context: a\n"
        "contexts: [{name: a, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n"
        "users:\n"
        f"- {{name: u, user: {{{user}}}}}\n"
    )
    done = finetune("list", "--kubeconfig", str(path))
    assert (done.code, "topsecret" in done.err) == (5, False)
    assert done.err.startswith(f"error: the kubeconfig {path} cannot be read: {reason}")


def _kubeconfig(path: Path, server: str, *, context: str, namespace: str, current: str) -> Path:
    path.write_text(
        f"current-context: '{current}'\n"
        f"contexts: [{{name: {context}, context: {{cluster: c-{context}, user: u, namespace: {namespace}}}}}]\n"
        f"clusters: [{{name: c-{context}, cluster: {{server: '{server}'}}}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    return path


@pytest.mark.parametrize(
    "order", [("a", "b"), ("b", "a"), ("empty", "a", "b"), ("b", "a", "empty"), ("none", "b", "a")]
)
def test_of_several_kubeconfigs_the_first_current_context_counts(
    front: Any, finetune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    server = f"http://127.0.0.1:{front.server_address[1]}"
    for name in ("a", "b"):
        _kubeconfig(tmp_path / name, server, context=name, namespace=f"of-{name}", current=name)
    (tmp_path / "empty").touch()
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(str(tmp_path / name) for name in order))
    first = next(name for name in order if name in {"a", "b"})
    assert finetune("list").err == f"no jobs in namespace of-{first}\n"
    assert finetune("list", "--context", "b").err == "no jobs in namespace of-b\n"


def test_a_file_without_a_current_context_leaves_the_choice_to_the_next_and_its_entries_win(
    front: Any, finetune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    first = _kubeconfig(
        tmp_path / "first",
        f"http://127.0.0.1:{front.server_address[1]}",
        context="same",
        namespace="of-first",
        current="",
    )
    second = _kubeconfig(tmp_path / "second", "http://127.0.0.1:1", context="same", namespace="no", current="same")
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, (first, second))))
    assert finetune("list").err == "no jobs in namespace of-first\n"


@pytest.mark.parametrize(("text", "problem"), [("current-context: gone", "gone does not exist"), ("[1]", "is not a")])
def test_a_kubeconfig_whose_current_context_cannot_be_found_is_no_cluster(
    finetune: Callable[..., Any], tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    done = finetune("list", "--kubeconfig", str(path))
    assert (done.code, problem in done.err) == (5, True), done.err


def test_a_user_who_acts_as_another_one_has_that_ones_rights(
    front: Any, finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    path = Path(os.environ["KUBECONFIG"])
    acting = (
        "{token: t, as: jane, as-uid: '7', as-groups: [team, readers], "
        "as-user-extra: {acme.com/project: [a, b], 100%: [c]}}"
    )
    path.write_text(path.read_text().replace("{token: t}", acting))
    sent: list[tuple[str, str]] = []
    handler, answer = front.RequestHandlerClass, front.RequestHandlerClass.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: (sent.extend(self.headers.items()), answer(self)))
    assert finetune("list", "--context", "lab").code == 0
    assert [(name.lower(), value) for name, value in sent if name.lower().startswith("impersonate-")] == [
        ("impersonate-user", "jane"),
        ("impersonate-uid", "7"),
        ("impersonate-group", "team"),
        ("impersonate-group", "readers"),
        ("impersonate-extra-acme.com%2fproject", "a"),
        ("impersonate-extra-acme.com%2fproject", "b"),
        ("impersonate-extra-100%25", "c"),
    ]
    assert ("Authorization", "Bearer t") in [(name.title(), value) for name, value in sent]


def test_a_user_who_does_not_act_as_another_one_sends_no_such_header(front: Any, finetune: Callable[..., Any]) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    assert finetune("list", "--context", "lab").code == 0
    assert not any(name.startswith("impersonate-") for name in front.headers[-1])
