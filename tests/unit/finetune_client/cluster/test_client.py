import os
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from finetune_client import FineTuneClient, FineTuneError, WrongUse
from finetune_client.cluster.client import open_cluster
from kubectl_finetune.__main__ import complete

NOT_FOUND = {"message": 'finetunejobs "ome" not found', "details": {"name": "ome"}}


def test_every_page_of_a_long_list_is_read(front: Any, finetune: Callable[..., Any], job: Any) -> None:
    front.answers["finetunejobs"] = [
        (200, {"items": [job("one").raw], "metadata": {"continue": "next"}}),
        (200, {"items": [job("two").raw], "metadata": {}}),
    ]
    done = finetune("list", "-l", "team=support", "-o", "yaml", "--context", "lab")
    assert [one["metadata"]["name"] for one in yaml.safe_load(done.out)["items"]] == ["one", "two"]
    queries = [path.partition("?")[2] for _, path, _ in front.requests]
    assert queries == ["labelSelector=team%3Dsupport&limit=500", "labelSelector=team%3Dsupport&limit=500&continue=next"]


def test_a_list_whose_next_page_has_expired_is_read_again_as_a_whole(
    front: Any, finetune: Callable[..., Any], job: Any
) -> None:
    expired = {"reason": "Expired", "message": "The provided continue parameter is too old"}
    front.answers["finetunejobs"] = [
        (200, {"items": [job("one").raw], "metadata": {"continue": "next"}}),
        (410, expired),
        (200, {"items": [job("one").raw, job("two").raw], "metadata": {}}),
    ]
    done = finetune("list", "-o", "json", "--context", "lab")
    assert (done.code, [one["metadata"]["name"] for one in yaml.safe_load(done.out)["items"]]) == (0, ["one", "two"])
    assert front.requests[-1][1].endswith("/finetunejobs")


def test_an_unknown_job_is_refused_with_similar_names(front: Any, finetune: Callable[..., Any], job: Any) -> None:
    front.answers["ome"] = [(404, NOT_FOUND)]
    front.answers["finetunejobs"] = [(200, {"items": [job("one").raw, job("other").raw], "metadata": {}})]
    done = finetune("describe", "ome", "--context", "lab")
    assert (done.code, "no FineTuneJob ome in namespace team-a\n  did you mean one" in done.err) == (3, True)
    front.answers["finetunejobs"] = [(403, {"message": "no"})]
    done = finetune("describe", "ome", "--context", "lab")
    assert (done.code, "kubectl finetune list -A" in done.err) == (3, True)


def test_a_page_has_the_events_of_the_job_in_order_and_none_without_the_right(
    front: Any, finetune: Callable[..., Any], job: Any
) -> None:
    events = [
        {"reason": "Second", "lastTimestamp": "2026-03-01T12:02:00Z"},
        {"reason": "First", "eventTime": "2026-03-01T12:01:00Z"},
    ]
    front.answers = {"one": [(200, job().raw)], "events": [(200, {"items": events}), (403, {"message": "no"})]}
    page = finetune("describe", "one", "--context", "lab").out
    assert page.index("First") < page.index("Second")
    assert front.requests[-1][1].endswith("/namespaces/team-a/events?fieldSelector=involvedObject.uid%3Duid-one")
    done = finetune("describe", "one", "--context", "lab")
    assert (done.code, "Events" in done.out) == (0, False)


def test_a_status_of_another_version_is_refused_with_its_field(
    front: Any, finetune: Callable[..., Any], job: Any
) -> None:
    front.answers["one"] = [(200, job().raw | {"status": {"metrics": {"trainLoss": "low"}}})]
    done = finetune("describe", "one", "--context", "lab")
    assert (done.code, "(status.metrics.trainLoss)" in done.err) == (1, True)


def test_names_are_completed_from_the_namespace(front: Any, job: Any, monkeypatch: Any, capfd: Any) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [job("one").raw, job("two").raw], "metadata": {}})]
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for words, names in (
        (["describe", "--context", "lab", "o"], ["one"]),
        (["describe", "--context", "none", "o"], []),
    ):
        monkeypatch.setattr("sys.argv", ["kubectl_complete-finetune", *words])
        complete()
        assert capfd.readouterr().out.splitlines() == [*names, ":4"]


@pytest.mark.parametrize("namespace", ["a/b", "a?b", "..", "Team"])
def test_a_namespace_that_cannot_exist_is_wrong_use(front: Any, namespace: str) -> None:
    with pytest.raises(WrongUse, match="cannot be the name of a namespace"):
        FineTuneClient(namespace, context="lab")
    assert front.requests == []


def test_a_parents_name_is_one_part_of_the_path(front: Any) -> None:
    front.answers["..%2Fone%3Fx%3D1"] = [(404, {"message": "no", "details": {"name": "x"}})]
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    assert open_cluster(None, "lab", None).find_job("../one?x=1") is None


def test_a_pod_of_a_deleted_job_of_the_same_name_has_no_log_of_this_one(
    front: Any, finetune: Callable[..., Any], job: Any
) -> None:
    created = job().raw["metadata"]["creationTimestamp"]
    meta = {"name": "one-1-abc", "namespace": "team-a", "uid": "u1", "annotations": {"finetune.dev/job-name": "one"}}
    status = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
    for stamp, code in (("2020-01-01T00:00:00Z", 3), (created, 0)):
        pod = {"metadata": meta | {"creationTimestamp": stamp}, "status": status}
        front.answers = {"one": [(200, job().raw)], "pods": [(200, {"items": [pod]})], "log": [(200, b"step 1\n")]}
        done = finetune("logs", "one", "--context", "lab")
        assert (done.code, done.out) == (code, "" if code else "step 1\n")


def test_a_status_that_is_unreadable_in_part_prevents_neither_stop_nor_delete(front: Any, job: Any) -> None:
    raw = job().raw
    front.answers["one"] = [(200, raw | {"status": raw["status"] | {"progress": {"step": "many"}}})]
    client = FineTuneClient(context="lab")
    client.stop("one")
    client.resume("one")
    client.delete("one")
    assert [one[0] for one in front.requests if one[0] != "GET"] == ["PATCH", "PATCH", "DELETE"]
    front.answers["one"] = [(200, raw | {"status": raw["status"] | {"conditions": "all"}})]
    with pytest.raises(FineTuneError, match=r"status\.conditions"):
        client.stop("one")
