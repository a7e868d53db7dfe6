"""The operator's defaults for the pods of jobs: they count where a job sets none, and change neither its spec nor its
digest."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.handoff import config_sha256
from finetune_operator.manifests.jobs import build_attempt, build_config
from finetune_operator.policy.admission import find_refusal
from finetune_operator.policy.deadlines import seconds_to_tidy
from finetune_operator.settings import Settings

GPU_TAINT = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}
CPU_TAINT = {"key": "cpu", "operator": "Exists"}
OWN_TAINT = {"key": "team", "operator": "Equal", "value": "a"}
DEFAULTS = Settings(
    trainer_image="registry.example/trainer:1",
    default_image_pull_secrets="pull,mirror",
    default_tolerations=f'[{{"key": "{GPU_TAINT["key"]}", "operator": "Exists", "effect": "NoSchedule"}}]',
    default_node_selector='{"node-role.kubernetes.io/gpu": ""}',
    default_runtime_class="sandboxed",
    default_pod_labels='{"team": "platform", "finetune.dev/job-name": "another"}',
    default_pod_annotations='{"karpenter.sh/do-not-disrupt": "true", "finetune.dev/job-name": "another"}',
    cpu_pod_node_selector='{"kubernetes.io/arch": "amd64"}',
    default_start_deadline_seconds="600",
    default_active_deadline_seconds="1200",
    default_ttl_seconds_after_finished="60",
)


def _pod(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("spec", [{}, {"scheduling": {"queueName": "q"}}], ids=["no block", "another field"])
def test_a_job_that_sets_none_gets_the_operators_placement_and_pull_secrets(built: Any, spec: Any) -> None:
    pod = _pod(built(using=DEFAULTS, **spec))
    assert pod["imagePullSecrets"] == [{"name": "pull"}, {"name": "mirror"}]
    assert pod["tolerations"] == [GPU_TAINT]
    assert pod["nodeSelector"] == {"node-role.kubernetes.io/gpu": ""}
    assert pod["runtimeClassName"] == "sandboxed"


def test_preflight_gets_no_default_that_chooses_gpu_nodes(built: Any) -> None:
    pod = _pod(built("preflight", using=DEFAULTS))
    assert pod["imagePullSecrets"] == [{"name": "pull"}, {"name": "mirror"}]
    assert pod["tolerations"] == [GPU_TAINT]
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert "runtimeClassName" not in pod


def test_pods_that_need_no_gpu_have_the_platforms_tolerations_if_it_sets_them(built: Any) -> None:
    own = {"tolerations": [OWN_TAINT], "nodeSelector": {"zone": "a"}}
    for given, expected in (("[]", None), ('[{"key": "cpu", "operator": "Exists"}]', [CPU_TAINT])):
        using = DEFAULTS.model_copy(
            update={"cpu_pod_tolerations": Settings(trainer_image="a", cpu_pod_tolerations=given).cpu_pod_tolerations}
        )
        pod = _pod(built("preflight", using=using, scheduling=own))
        assert pod.get("tolerations") == expected
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert _pod(built(using=using, scheduling=own))["tolerations"] == [OWN_TAINT]


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_labels_and_annotations_of_the_platform_are_on_all_pods_and_cannot_replace_the_operators(
    built: Any, kind: str
) -> None:
    trainer = {"podLabels": {"cost-centre": "a17", "team": "own"}, "podAnnotations": {"cni": "rdma"}}
    found = built(kind, using=DEFAULTS, trainer=trainer)["spec"]["template"]["metadata"]
    plain = built(kind)["spec"]["template"]["metadata"]
    assert found["labels"] == plain["labels"] | {"cost-centre": "a17", "team": "own"}
    of_job = {"cni": "rdma"} if kind == "trainer" else {}
    assert found["annotations"] == plain["annotations"] | {"karpenter.sh/do-not-disrupt": "true"} | of_job


def test_labels_of_the_pods_are_on_everything_that_is_made_for_them_except_those_that_queue(scene: Any) -> None:
    """A policy that requires a team or a cost centre is often for all kinds."""
    two_pods = {"numNodes": 2, "gpusPerNode": 1, "workspace": {"sizeLimit": "1Ti", "storageClassName": "fast"}}
    queued = {"podLabels": {"cost-centre": "a17", "kueue.x-k8s.io/queue-name": "q"}}
    job, using = scene(resources=two_pods, trainer=queued).job, DEFAULTS.model_copy(update={"pod_egress": []})
    child = build_attempt(job, using, "registry.example/trainer:1", 1)
    for made in (child.config_map, child.peer_token, child.service, child.network_policy, child.job):
        labels = made["metadata"]["labels"]
        assert (labels["team"], labels["cost-centre"], labels["finetune.dev/job-name"]) == ("platform", "a17", "one")
        assert "kueue.x-k8s.io/queue-name" not in labels
    claim = next(one for one in _pod(child.job)["volumes"] if "ephemeral" in one)["ephemeral"]["volumeClaimTemplate"]
    assert claim["metadata"]["labels"]["cost-centre"] == "a17"
    assert child.job["spec"]["template"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"


def test_what_a_job_sets_replaces_the_default_as_a_whole(built: Any) -> None:
    own = {"tolerations": [OWN_TAINT], "nodeSelector": {"zone": "a"}, "runtimeClassName": "nvidia"}
    pod = _pod(built(using=DEFAULTS, scheduling=own, trainer={"imagePullSecrets": [{"name": "mine"}]}))
    assert {name: pod[name] for name in own} == own
    assert pod["imagePullSecrets"] == [{"name": "mine"}]


def test_an_empty_list_or_map_of_a_job_means_none(built: Any) -> None:
    own = {"tolerations": [], "nodeSelector": {}}
    pod = _pod(built(using=DEFAULTS, scheduling=own, trainer={"imagePullSecrets": []}))
    assert pod.keys().isdisjoint({"tolerations", "nodeSelector", "imagePullSecrets"})


def test_without_defaults_a_pod_has_none(built: Any) -> None:
    empty = Settings(
        trainer_image="registry.example/trainer:1",
        **{name: "" for name in Settings.model_fields if name in DEFAULTS.model_fields_set - {"trainer_image"}},
    )
    assert built(using=empty) == built()


def test_the_defaults_change_neither_the_jobs_configuration_nor_its_digest(scene: Any, settings: Settings) -> None:
    job = scene().job
    assert build_config(job, DEFAULTS, 1) == build_config(job, settings, 1)
    assert build_config(job, DEFAULTS, 1).config_sha256 == config_sha256(job.spec)


def test_the_allow_lists_are_for_what_a_job_asks_for_not_for_the_defaults(scene: Any) -> None:
    assert find_refusal(scene().job, DEFAULTS) is None
    for own in ({"tolerations": [GPU_TAINT]}, {"runtimeClassName": "sandboxed"}):
        assert find_refusal(scene(scheduling=own).job, DEFAULTS)


@pytest.mark.parametrize(("own", "passed"), [({}, True), ({"startDeadlineSeconds": 6000}, False)])
def test_the_default_start_deadline_ends_a_job_that_sets_none(scene: Any, own: Any, passed: bool) -> None:
    one = scene(**own)
    one.settings = DEFAULTS
    one.settle()
    one.now += timedelta(seconds=601)
    one.settle()
    assert (one.status["reason"] == "StartDeadlineExceeded") is passed


@pytest.mark.parametrize(("own", "passed"), [({}, True), ({"activeDeadlineSeconds": 6000}, False)])
def test_the_default_active_deadline_ends_a_job_that_sets_none(scene: Any, own: Any, passed: bool) -> None:
    one = scene(**own)
    one.settings = DEFAULTS
    one.to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one.now += timedelta(seconds=1201)
    one.settle()
    assert (one.status["reason"] == "DeadlineExceeded") is passed


@pytest.mark.parametrize(("own", "left"), [({}, 60.0), ({"ttlSecondsAfterFinished": 5}, 5.0)])
def test_the_default_ttl_is_for_finished_jobs_that_set_none(scene: Any, own: Any, left: float) -> None:
    one = scene(**own).to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    assert seconds_to_tidy(one.job, one.job.status.completion_time, DEFAULTS) == left


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("default_tolerations", "gpu=true", "JSON"),
        ("default_tolerations", '[{"key": "a", "efect": "NoExecute"}]', "efect"),
        ("default_node_selector", '["a"]', "dictionary"),
        ("default_pod_labels", '{"a": 1}', "string"),
        ("cpu_pod_tolerations", '[{"key": "a", "efect": "NoExecute"}]', "efect"),
        ("node_avoidance", "Sometimes", "Preferred"),
        ("default_image_pull_secrets", "Not a name", "pattern"),
        ("default_start_deadline_seconds", "0", "greater than"),
    ],
)
def test_a_default_that_no_pod_can_have_is_refused_at_start(name: str, value: str, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(trainer_image="registry.example/trainer:1", **{name: value})
