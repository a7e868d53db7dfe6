"""A user who may create FineTuneJobs in a namespace, and asks for all that a spec can express."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import handoff, names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.manifests.jobs import Child, build_attempt, build_preflight
from finetune_operator.policy.admission import find_refusal
from finetune_operator.settings import Settings

IMAGE = "registry.example/trainer:1"
SETTINGS = Settings(
    trainer_image=IMAGE,
    allowed_pod_annotations=["*"],
    allowed_pod_labels=["*"],
    default_hub_token_secret="platform-hub",
    default_hub_endpoint="https://hub.example",
)
OWN_VOLUMES = {"configMap", "emptyDir", "secret", "projected", "persistentVolumeClaim"}
TEXTS = (
    *("$(AWS_SECRET_ACCESS_KEY)", "../../etc", "/proc/self/environ", "a;id", "{{ .Values }}", "\u202egnp", "x" * 300),
    *("root", "default", "kube-system/admin", "0", "-1", "", "host", "privileged", "nvidia", "kata", "*", "a/b:c@d"),
    *("node-role.kubernetes.io/control-plane", "node.kubernetes.io/unschedulable", "kubernetes.io/hostname"),
    *(names.LABEL_MANAGED_BY, names.ANNOTATION_JOB_NAME, "container.apparmor.security.beta.kubernetes.io/trainer"),
    *("LD_PRELOAD", "PYTHONPATH", "NCCL_NET_PLUGIN", "NCCL_DEBUG", "HOME", handoff.ENV_POD_UID, "PYTHONSAFEPATH"),
    "UCX_GDB_COMMAND",
    *("registry.example/trainer:evil", "registry.example/trainer-evil:1", "registry.example/trainer:1/../evil:1"),
    *("http://169.254.169.254", "http://[::ffff:a9fe:a9fe]", "https://s3.example", "https://hub.example.evil"),
)
NUMBERS = (-1, 0, 1, 5, 30, 3600, 3601, 86400, 10**12)
FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "image": lambda text: {"trainer": {"image": text}},
    "service account": lambda text: {"trainer": {"serviceAccountName": text}},
    "pull secret": lambda text: {"trainer": {"imagePullSecrets": [{"name": text}]}},
    "variable": lambda text: {"trainer": {"env": [{"name": text, "value": "1"}]}},
    "value": lambda text: {"trainer": {"env": [{"name": "NCCL_DEBUG", "value": text}]}},
    "annotation": lambda text: {"trainer": {"podAnnotations": {text: "other"}}},
    "label": lambda text: {"trainer": {"podLabels": {text: "other"}}},
    "field of a pod": lambda text: {"trainer": {text: True}},
    "priority": lambda text: {"scheduling": {"priorityClassName": text}},
    "priority in the queue": lambda text: {"scheduling": {"queueName": "q", "workloadPriorityClassName": text}},
    "runtime": lambda text: {"scheduling": {"runtimeClassName": text}},
    "toleration": lambda text: {"scheduling": {"tolerations": [{"key": text, "operator": "Exists"}]}},
    "toleration of all": lambda text: {"scheduling": {"tolerations": [{"operator": "Exists", "value": text or None}]}},
    "node label": lambda text: {"scheduling": {"nodeSelector": {text: ""}}},
    "storage": lambda text: {"storage": {"endpoint": text}},
    "storage's Secret": lambda text: {"storage": {"credentialsSecretRef": {"name": text}}},
    "hub": lambda text: {"hub": {"endpoint": text}},
    "cache": lambda text: {"modelCache": {"claimName": text}},
    "tracker": lambda text: {"tracking": {"mlflow": {"endpoint": text, "experiment": "e"}}},
    "grace period": lambda text: {"checkpoint": {"gracePeriodSeconds": text}},
    "GPUs": lambda text: {"resources": {"gpusPerNode": text}},
    "pods": lambda text: {"resources": {"numNodes": text}},
}
CONTROL_PLANE = "node-role.kubernetes.io/"
METADATA = re.compile(r'"(endpoint|uri)":"http://(169|\[)')
SPEC: dict[str, Any] = {
    "objective": "Chat",
    "model": {"uri": "hf://owner/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_whatever_a_field_asks_for_is_refused_or_a_restricted_pod_of_an_allowed_image(name: str) -> None:
    made = 0
    for value in (*TEXTS, *NUMBERS):
        spec = SPEC | FIELDS[name](value)
        try:
            FineTuneJobSpec.model_validate(spec)
        except ValidationError:
            continue
        job = read(spec)
        if find_refusal(job, SETTINGS) is None:
            made += 1
            for child in (build_preflight(job, SETTINGS, image(job)), build_attempt(job, SETTINGS, image(job), 1)):
                assert_harmless(child)
    assert made or name in {"field of a pod", "priority", "priority in the queue", "toleration of all"}


def test_the_platforms_token_goes_to_no_other_hub() -> None:
    job = read(SPEC | {"hub": {"endpoint": "https://hub.example.evil"}})
    assert "platform-hub" not in str(build_attempt(job, SETTINGS, IMAGE, 1).job)
    assert "platform-hub" in str(build_attempt(read(SPEC), SETTINGS, IMAGE, 1).job)


PREFIXES = Settings(trainer_image=IMAGE, allowed_storage_prefixes="s3://bucket/{namespace}/,s3://shared/models")
OWN = "s3://bucket/team/x"
URIS: dict[str, Callable[[str], dict[str, Any]]] = {
    "output.uri": lambda uri: {"output": {"uri": uri}},
    "model.uri": lambda uri: {"model": {"uri": uri}},
    "dataset.train.uri": lambda uri: {"dataset": {"train": {"uri": uri}}},
    "dataset.train.sources[1].uri": lambda uri: {
        "dataset": {"train": {"sources": [{"uri": "s3://bucket/team/first"}, {"uri": uri}]}}
    },
    "dataset.validation.uri": lambda uri: {"dataset": {"train": {"uri": OWN}, "validation": {"uri": uri}}},
    "tuning.initialAdapter.uri": lambda uri: {"tuning": {"initialAdapter": {"uri": uri}}},
    "rlhf.rewardModel.uri": lambda uri: {"objective": "RLHF", "rlhf": {"rewardModel": {"uri": uri}}},
    "distillation.teacher.uri": lambda uri: {"objective": "Distillation", "distillation": {"teacher": {"uri": uri}}},
    "evaluation.ability.uri": lambda uri: {"evaluation": {"ability": {"uri": uri}}},
}


@pytest.mark.parametrize("field", URIS)
@pytest.mark.parametrize(
    "uri",
    [
        *("s3://bucket/other/x", "s3://bucket/team-evil/x", "s3://bucket/tea", "s3://bucket/teams/x", "s3://bucket/x"),
        *("s3://bucket/team/../other/x", "s3://bucket/team/./../other", "s3://bucket/team/a/..", "s3://bucket/Team/x"),
        *("s3://bucket-evil/team/x", "s3://bucket.evil/team/x", "s3://other/bucket/team/x", "s3://team/x"),
        *("s3://bucket/{namespace}/x", "s3://bucket/*/x", "s3://bucket/team*/x", "s3://bucket/**"),
        *("s3://bucket/%74eam/x", "s3://bucket/team%2fx", "s3://bucket/team\\x", "s3://shared/models-evil/x"),
    ],
)
def test_no_field_reaches_a_prefix_of_another_namespace(field: str, uri: str) -> None:
    job = read(SPEC | {"output": {"uri": OWN}, "dataset": {"train": {"uri": OWN}}} | URIS[field](uri))
    refusal = find_refusal(job, PREFIXES) or ""
    assert refusal.startswith(f"{field} {uri} is not allowed: ")
    assert "s3://bucket/team/" in refusal
    assert "FINETUNE_ALLOWED_STORAGE_PREFIXES" in refusal


@pytest.mark.parametrize("field", URIS)
@pytest.mark.parametrize("uri", [OWN, "s3://bucket/team/a/b/", "s3://shared/models/base", "s3://bucket/team/a..b/*.x"])
def test_every_field_may_name_what_is_under_a_prefix_of_its_namespace(field: str, uri: str) -> None:
    job = read(SPEC | {"output": {"uri": OWN}, "dataset": {"train": {"uri": OWN}}} | URIS[field](uri))
    assert find_refusal(job, PREFIXES) is None


def test_a_folder_may_be_the_prefix_itself_and_an_object_may_not() -> None:
    for field in ("output.uri", "model.uri"):
        job = read(
            SPEC | {"output": {"uri": OWN}, "dataset": {"train": {"uri": OWN}}} | URIS[field]("s3://bucket/team")
        )
        assert find_refusal(job, PREFIXES) is None
    assert find_refusal(read(SPEC | {"output": {"uri": OWN}} | URIS["dataset.train.uri"]("s3://bucket/team")), PREFIXES)


def test_a_pod_knows_the_prefixes_for_what_a_file_in_storage_names() -> None:
    job = read(SPEC | {"output": {"uri": OWN}, "dataset": {"train": {"uri": OWN}}})
    for settings, found in ((PREFIXES, ["s3://bucket/team/", "s3://shared/models/"]), (SETTINGS, None)):
        for child in (build_preflight(job, settings, IMAGE), build_attempt(job, settings, IMAGE, 1)):
            config = handoff.JobConfig.model_validate_json(child.config_map["data"][handoff.CONFIG_FILE])
            assert config.storage_prefixes == found


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, True),
        ({"allowed_hub_endpoints": "https://mirror.example"}, False),
        ({"allowed_hub_endpoints": "https://hugging*.co"}, True),
        (
            {"allowed_hub_endpoints": "https://mirror.example", "default_hub_endpoint": "https://hub.example"},
            True,
        ),
    ],
)
def test_a_pod_knows_whether_it_may_ask_the_hub_for_what_a_file_in_storage_names(
    settings: dict[str, Any], found: bool
) -> None:
    """A job that names no hub is not refused for its list, and its reward model may be an adapter of a hub's model."""
    own = {"model": {"uri": OWN}, "output": {"uri": OWN}, "dataset": {"train": {"uri": OWN}}}
    job, limits = read(SPEC | own | URIS["rlhf.rewardModel.uri"](OWN)), Settings(trainer_image=IMAGE, **settings)
    assert find_refusal(job, limits) is None
    for child in (build_preflight(job, limits, IMAGE), build_attempt(job, limits, IMAGE, 1)):
        config = handoff.JobConfig.model_validate_json(child.config_map["data"][handoff.CONFIG_FILE])
        assert config.has_hub is found


def test_prefixes_leave_hubs_and_without_a_list_everything_alone() -> None:
    rows = {"train": {"uri": "hf://datasets/owner/rows"}}
    assert find_refusal(read(SPEC | {"output": {"uri": OWN}, "dataset": rows}), PREFIXES) is None
    assert find_refusal(read(SPEC | {"output": {"uri": "s3://any/where"}}), SETTINGS) is None


def test_the_prefixes_are_checked_in_every_field_that_takes_a_uri_of_storage() -> None:
    schema = FineTuneJobSpec.model_json_schema(by_alias=True)
    assert set(_storage_fields(schema, schema, "")) == {field.replace("[1]", "") for field in URIS}


def _storage_fields(node: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """The paths of the fields whose rules speak of `s3://bucket/path` as their form."""
    for part in [node, *node.get("anyOf", [])]:
        rules = part.get("x-kubernetes-validations", [])
        if any(one["message"].startswith("must be ") and "s3://bucket/path" in one["message"] for one in rules):
            yield path
        if reference := part.get("$ref"):
            yield from _storage_fields(schema["$defs"][reference.rsplit("/", 1)[-1]], schema, path)
        for name, child in part.get("properties", {}).items():
            yield from _storage_fields(child, schema, f"{path}.{name}".lstrip("."))
        if isinstance(part.get("items"), dict):
            yield from _storage_fields(part["items"], schema, path)


@pytest.mark.parametrize(
    "entry",
    ["bucket/team", "s3://bucket/*/", "s3://bucket/{name}/", "s3://bucket/../x", "https://s3.example/b", "s3://"],
)
def test_a_prefix_that_could_match_more_than_it_shows_is_refused_at_start(entry: str) -> None:
    with pytest.raises(ValidationError, match=r"\{namespace\}"):
        Settings(trainer_image=IMAGE, allowed_storage_prefixes=entry)


def read(spec: dict[str, Any]) -> FineTuneJob:
    meta = {"namespace": "team", "name": "one", "uid": "job-uid", "generation": 1, "resourceVersion": "5"}
    job = FineTuneJob.from_object({"metadata": meta, "spec": spec})
    assert job.spec is not None
    return job


def image(job: FineTuneJob) -> str:
    return (job.spec and job.spec.trainer.image) or IMAGE


def assert_harmless(child: Child) -> None:
    """Check what SECURITY.md promises of a pod."""
    job = child.job
    pod, meta = job["spec"]["template"]["spec"], job["spec"]["template"]["metadata"]
    (container,) = pod["containers"]
    assert "initContainers" not in pod
    assert "command" not in container
    assert container["image"].rpartition(":")[0] == "registry.example/trainer"
    assert container["args"] in (["preflight"], ["train"])
    assert pod.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC", "nodeName", "priorityClassName"})
    assert pod["automountServiceAccountToken"] is False
    assert pod.get("serviceAccountName", "default") == "default"
    assert pod.get("runtimeClassName", "nvidia") == "nvidia"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {key for volume in pod["volumes"] for key in volume} - {"name"} <= OWN_VOLUMES
    assert pod["terminationGracePeriodSeconds"] <= SETTINGS.max_grace_period_seconds
    tolerated = [one["key"] for one in pod.get("tolerations", [])]
    assert not any(one.startswith(CONTROL_PLANE) for one in [*pod.get("nodeSelector", ()), *tolerated])
    assert "node.kubernetes.io/unschedulable" not in tolerated
    assert not METADATA.search(child.config_map["data"][handoff.CONFIG_FILE])
    given = [one["name"] for one in container["env"]]
    assert len(given) == len(set(given))
    assert {"LD_PRELOAD", "PYTHONPATH", "NCCL_NET_PLUGIN", "UCX_GDB_COMMAND"}.isdisjoint(given)
    values = {one["name"]: one.get("value", "") for one in container["env"]}
    assert all("$(" not in value.replace("$$(", "") for value in values.values())
    assert values["PYTHONSAFEPATH"] == "1"
    assert values["HOME"] == handoff.WORKSPACE_DIR
    assert meta["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY
    assert meta["annotations"][names.ANNOTATION_JOB_NAME] == "one"
