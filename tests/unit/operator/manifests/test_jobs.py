"""What the operator creates."""

import json
from typing import Any

import pytest

from finetune_api import names
from finetune_api.handoff import config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.child_names import selector_value, slug
from finetune_operator.kube.images import repository
from finetune_operator.manifests.effective_spec import build_effective_spec
from finetune_operator.manifests.jobs import build_config, build_preflight
from finetune_operator.manifests.pods import escape_variables
from finetune_operator.settings import Settings


def _pod(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


def _container(job: Any) -> Any:
    return _pod(job)["containers"][0]


def _workspace(job: Any) -> Any:
    return next(one["emptyDir"] for one in _pod(job)["volumes"] if one["name"] == "workspace")


def test_preflight_requests_no_gpu_and_few_resources(built: Any) -> None:
    container = _container(built("preflight"))
    assert container["args"] == ["preflight"]
    assert container["resources"] == {
        "requests": {"cpu": "250m", "memory": "512Mi"},
        "limits": {"memory": "4Gi"},
    }


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"requests": {"cpu": 2}}, {"requests": {"cpu": 2, "memory": "512Mi"}, "limits": {"memory": "4Gi"}}),
        ({"requests": {"memory": "8Gi"}}, {"requests": {"memory": "8Gi"}}),
        ({"limits": {"memory": "1Gi"}}, {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}),
        (
            {"limits": {"cpu": 1}},
            {"requests": {"cpu": 1, "memory": "512Mi"}, "limits": {"cpu": 1, "memory": "4Gi"}},
        ),
    ],
)
def test_preflight_has_a_memory_limit_unless_its_job_sets_memory(built: Any, given: Any, made: Any) -> None:
    assert _container(built("preflight", preflight={"resources": given}))["resources"] == made


def test_the_platform_sets_the_limits_of_preflight_or_none(built: Any) -> None:
    none = Settings(trainer_image="x/y:1", preflight_memory_limit="", preflight_workspace_limit="")
    job = built("preflight", using=none)
    assert "limits" not in _container(job)["resources"]
    assert _workspace(job) == {}
    assert _workspace(built("preflight")) == {"sizeLimit": "50Gi"}
    assert _workspace(built("preflight", resources={"workspace": {"sizeLimit": "1Gi"}})) == {"sizeLimit": "1Gi"}
    assert _workspace(built()) == {}


def test_gpu_requests_equal_limits_and_cannot_be_overruled(built: Any) -> None:
    resources = {
        "gpusPerNode": 1,
        "gpuResourceName": "amd.com/gpu",
        "requests": {"cpu": 4, "amd.com/gpu": 8},
        "limits": {"memory": "24Gi"},
    }
    given = _container(built(resources=resources))["resources"]
    assert given == {"requests": {"cpu": 4, "amd.com/gpu": 1}, "limits": {"memory": "24Gi", "amd.com/gpu": 1}}


@pytest.mark.parametrize(
    ("scheduler", "nodes", "members"),
    [
        ("volcano", 2, "2"),
        ("kai-scheduler", 3, "3"),
        ("volcano", 1, None),
        ("default-scheduler", 2, None),
        (None, 2, None),
    ],
)
def test_another_scheduler_is_asked_to_place_all_pods_of_a_job_or_none(
    built: Any, scheduler: str | None, nodes: int, members: str | None
) -> None:
    job = built(
        resources={"numNodes": nodes, "gpusPerNode": 1},
        tuning={"method": "LoRA"},
        scheduling={"schedulerName": scheduler} if scheduler else {},
    )
    annotations = job["metadata"]["annotations"]
    assert annotations.get("scheduling.volcano.sh/group-min-member") == members
    assert annotations.get("kai.scheduler/batch-min-member") == members


def test_a_job_without_gpus_requests_none(built: Any) -> None:
    resources = _container(built(resources={"gpusPerNode": 0}))["resources"]
    assert resources == {"requests": {"cpu": "1", "memory": "2Gi"}}


def test_a_trainer_whose_job_names_no_requests_gets_some_for_each_of_its_processes(built: Any) -> None:
    requests = _container(built(resources={"gpusPerNode": 8}))["resources"]["requests"]
    assert requests == {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": 8}


def test_default_requests_of_a_trainer_do_not_exceed_its_limits(built: Any) -> None:
    resources = _container(built(resources={"gpusPerNode": 0, "limits": {"memory": "1Gi"}}))["resources"]
    assert resources == {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}


def test_empty_requests_stay_empty_so_that_a_limit_range_can_fill_them(built: Any) -> None:
    assert _container(built(resources={"gpusPerNode": 0, "requests": {}}))["resources"] == {}
    assert _container(built("preflight", preflight={"resources": {"requests": {}}}))["resources"] == {}


@pytest.mark.parametrize(
    ("chosen", "requests"),
    [
        ({"default_cpu_request": "250m", "default_memory_request": "1.5Gi"}, {"cpu": "500m", "memory": "3.0Gi"}),
        ({"default_cpu_request": "", "default_memory_request": "1Gi"}, {"memory": "2Gi"}),
        ({"default_cpu_request": "", "default_memory_request": ""}, {}),
    ],
)
def test_the_operators_settings_choose_the_default_requests(
    built: Any, settings: Settings, chosen: dict[str, str], requests: dict[str, str]
) -> None:
    using = Settings(**settings.model_dump() | chosen)
    found = _container(built(using=using, resources={"gpusPerNode": 2}))["resources"]["requests"]
    assert found == requests | {"nvidia.com/gpu": 2}


def test_a_pod_uses_as_many_threads_as_before_the_default_requests(scene: Any, settings: Settings) -> None:
    config = build_config(scene().job, settings, 1)
    assert config.spec.resources.requests is None  # else OMP_NUM_THREADS would follow the default
    assert config.config_sha256 == config_sha256(scene().job.spec)


def test_a_default_request_does_not_exceed_a_given_limit(built: Any) -> None:
    resources = _container(built("preflight", preflight={"resources": {"limits": {"memory": "256Mi"}}}))["resources"]
    assert resources["requests"] == {"cpu": "250m", "memory": "256Mi"}


@pytest.mark.parametrize("kind", ["preflight", "trainer"])
def test_pods_meet_the_restricted_standard_and_carry_no_token(built: Any, kind: str) -> None:
    pod, container = _pod(built(kind)), _container(built(kind))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_platform_may_choose_the_user(built: Any) -> None:
    chosen = Settings(trainer_image="x/y:1", trainer_run_as_user=None)
    assert "runAsUser" not in _pod(built(using=chosen))["securityContext"]
    assert _pod(built())["securityContext"]["fsGroup"] == 65532


def test_every_cache_is_in_the_workspace(built: Any) -> None:
    environment = {one["name"]: one.get("value") for one in _container(built())["env"]}
    for name in ("HOME", "TMPDIR", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        assert environment[name].startswith("/workspace")
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"


def test_the_job_chooses_variables_and_annotations_of_its_trainer_but_none_that_the_operator_sets(built: Any) -> None:
    trainer = {
        "env": [{"name": "NCCL_DEBUG", "value": "$(INFO)"}, {"name": "PYTHONSAFEPATH", "value": "0"}],
        "podAnnotations": {"cni.io/networks": "rdma", names.ANNOTATION_JOB_NAME: "another"},
    }
    job, preflight = built(trainer=trainer), built("preflight", trainer=trainer)
    environment = [(one["name"], one.get("value")) for one in _container(job)["env"]]
    assert ("NCCL_DEBUG", "$$(INFO)") in environment
    assert [value for name, value in environment if name == "PYTHONSAFEPATH"] == ["1"]
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["cni.io/networks"] == "rdma"
    assert (
        annotations[names.ANNOTATION_JOB_NAME] == job["metadata"]["annotations"][names.ANNOTATION_JOB_NAME] != "another"
    )
    assert "NCCL_DEBUG" not in {one["name"] for one in _container(preflight)["env"]}
    assert "cni.io/networks" not in preflight["spec"]["template"]["metadata"]["annotations"]


def test_secrets_are_mounted_as_files_and_named_nowhere_else(built: Any) -> None:
    storage = {
        "endpoint": "https://s3.example",
        "credentialsSecretRef": {"name": "keys"},
        "caSecretRef": {"name": "ca"},
    }
    job = built(storage=storage)
    volumes = {one["name"]: one for one in _pod(job)["volumes"]}
    assert volumes["credentials"]["secret"] == {"secretName": "keys", "defaultMode": 0o440}
    assert volumes["ca"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    mounts = {one["name"]: one for one in _container(job)["volumeMounts"]}
    assert mounts["credentials"]["mountPath"] == "/etc/finetune/credentials"
    assert mounts["credentials"]["readOnly"] is True
    assert not [one for one in _container(job)["env"] if "secretKeyRef" in one.get("valueFrom", {})]


def test_token_and_authority_of_a_reward_are_mounted_by_its_position_wherever_it_is_asked(built: Any) -> None:
    secrets = {"credentialsSecretRef": {"name": "grader"}, "caSecretRef": {"name": "authority"}}
    services = [{"endpoint": "https://one.example"}, {"endpoint": "https://two.example", **secrets}]
    rlhf = {"rewards": [{"type": "Service", "service": one} for one in services]}
    for kind in ("trainer", "preflight"):
        job = built(kind, objective="RLHF", rlhf=rlhf)
        volumes = {one["name"]: one for one in _pod(job)["volumes"]}
        mounts = {one["name"]: one for one in _container(job)["volumeMounts"]}
        assert mounts["rewards"] == {"name": "rewards", "mountPath": "/etc/finetune/rewards", "readOnly": True}
        assert volumes["rewards"]["projected"]["sources"] == [
            {"secret": {"name": "grader", "items": [{"key": "REWARD_TOKEN", "path": "1/REWARD_TOKEN"}]}},
            {"secret": {"name": "authority", "items": [{"key": "ca.crt", "path": "1/ca.crt"}]}},
        ]
    plain = built(objective="RLHF", rlhf={"rewards": [{"type": "Service", "service": services[0]}]})
    assert "rewards" not in {one["name"] for one in _pod(plain)["volumes"]}


def test_a_chat_template_of_a_configmap_is_mounted_where_the_job_is_checked(built: Any) -> None:
    def mounted(*kind: str, **spec: Any) -> list[Any]:
        job = built(*kind, model={"uri": "s3://models/base", "chatTemplate": chosen}, **spec)
        paths = {one["name"]: one["mountPath"] for one in _container(job)["volumeMounts"]}
        return [
            (one["configMap"], paths[one["name"]]) for one in _pod(job)["volumes"] if one["name"] == "chat-template"
        ]

    chosen: Any = {"configMapKeyRef": {"name": "templates", "key": "ours.jinja"}}
    items = [{"key": "ours.jinja", "path": "chat_template.jinja"}]
    volume = ({"name": "templates", "items": items}, "/etc/finetune/chat-template")
    assert mounted("preflight") == [volume]
    assert mounted() == []
    one_gpu = {"gpusPerNode": 1}
    assert mounted(preflight={"enabled": False}, resources=one_gpu) == [volume]
    chosen = {"name": "ChatML"}
    assert mounted("preflight") == []


def test_the_exit_table_is_the_pod_failure_policy(built: Any) -> None:
    rules = built()["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
    assert rules[0]["onExitCodes"]["values"] == [64, 65, 66, 71, 72, 73, 76, 77, 78, 79, 80]
    assert rules[1]["onExitCodes"]["values"] == [75]
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert built()["spec"]["podReplacementPolicy"] == "Failed"


def test_scheduling_reaches_the_trainer_and_tolerations_and_priority_reach_preflight_too(built: Any) -> None:
    scheduling = {
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    }
    trainer, preflight = _pod(built(scheduling=scheduling)), _pod(built("preflight", scheduling=scheduling))
    assert (trainer["nodeSelector"], trainer["priorityClassName"]) == ({"gpu": "a100"}, "high")
    assert trainer["runtimeClassName"] == "nvidia"
    assert preflight["tolerations"] == trainer["tolerations"] == scheduling["tolerations"]
    assert preflight["priorityClassName"] == "high"  # Kueue serves the Jobs of a queue by it
    assert not {"nodeSelector", "runtimeClassName"} & set(preflight)


def test_workspace_and_shared_memory_are_sized(built: Any) -> None:
    job = built(resources={"workspace": {"sizeLimit": "100Gi"}, "shmSize": "8Gi"})
    volumes = {one["name"]: one for one in _pod(job)["volumes"]}
    assert volumes["workspace"]["emptyDir"] == {"sizeLimit": "100Gi"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}


@pytest.mark.parametrize("kind", ["preflight", "train"])
def test_a_workspace_of_a_storage_class_is_a_volume_that_lives_as_long_as_the_pod(built: Any, kind: str) -> None:
    workspace = {"sizeLimit": "500Gi", "storageClassName": "fast"}
    (volume,) = [one for one in _pod(built(kind, resources={"workspace": workspace}))["volumes"] if "ephemeral" in one]
    assert volume["name"] == "workspace"
    assert volume["ephemeral"]["volumeClaimTemplate"]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "500Gi"}},
    }


def test_children_are_owned_without_blocking_a_deletion(scene: Any, settings: Settings) -> None:
    child = build_preflight(scene().job, settings, "x/y:1")
    for obj in (child.job, child.config_map):
        owner = obj["metadata"]["ownerReferences"][0]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("job-uid", True, False)
    assert child.config_map["immutable"] is True


def test_another_config_gets_another_name(scene: Any, settings: Settings) -> None:
    first = build_preflight(scene().job, settings, "x/y:1")
    second = build_preflight(scene(storage={"region": "eu-west-1"}).job, settings, "x/y:1")
    assert first.config_map["metadata"]["name"] != second.config_map["metadata"]["name"]
    assert first.name == second.name


def test_the_config_carries_what_preflight_found(scene: Any, settings: Settings) -> None:
    one = scene().to_training()
    config = build_config(one.job, settings, 1)
    assert (config.attempt, config.dataset.rows if config.dataset else None) == (1, 5)
    name = _pod(one.children["one-1"])["volumes"][0]["configMap"]["name"]
    assert name.startswith("one-1-")
    assert json.loads(config.model_dump_json(by_alias=True))["uid"] == "job-uid"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, ("http://default", "keys")),
        ({"credentialsSecretRef": {"name": "mine"}}, ("http://default", "mine")),
        ({"endpoint": "http://own"}, ("http://own", None)),
    ],
)
def test_default_storage_completes_a_storage_without_an_endpoint(scene: Any, own: Any, expected: Any) -> None:
    settings = Settings(
        trainer_image="x/y:1", default_storage_endpoint="http://default", default_storage_credentials_secret="keys"
    )
    spec = FineTuneJobSpec.model_validate(scene(**({"storage": own} if own else {})).object["spec"])
    storage = build_effective_spec(spec, settings).storage
    assert storage is not None
    secret = storage.credentials_secret_ref
    assert (storage.endpoint, secret.name if secret else None) == expected


@pytest.mark.parametrize("name", ["plain", "dots.in.name", "1st", "n" * 52, "a" * 253, "a." * 60 + "a"])
def test_slugs_are_dns_labels_that_leave_room_for_suffixes(name: str) -> None:
    made = slug(name)
    assert len(made) <= 51
    assert made[0].isalpha()
    assert made[-1].isalnum()
    assert "." not in made
    assert len(selector_value(name)) <= 63


def test_changed_names_do_not_collide() -> None:
    assert len({slug("a.b"), slug("a-b"), slug("a" * 60), slug("a" * 61)}) == 4


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("x", "docker.io/library/x"),
        ("team/x:1", "docker.io/team/x"),
        ("localhost:5000/x:1", "localhost:5000/x"),
        ("reg.example/team/x:1@sha256:" + "0" * 64, "reg.example/team/x"),
    ],
)
def test_repositories_are_compared_in_full(image: str, expected: str) -> None:
    assert repository(image) == expected


def test_variables_in_user_text_stay_text() -> None:
    assert escape_variables("x$(HOME)y") == "x$$(HOME)y"
