"""The allow-lists."""

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_operator.policy.admission import find_refusal, is_metadata_address
from finetune_operator.settings import Settings


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
        "fe80::1",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "METADATA.google.internal.",
        "100.100.100.200",
        "fd20:ce::254",
        "fd00:ec2::23",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::169.254.169.254",
        "2002:a9fe:a9fe::1",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "64:ff9b:1:2:3:4:a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1:12a9:fe:a9fe::",
        "64:ff9b:1:1234:a9:fea9:fe00:0",
        "2001:0:a9fe:a9fe::1",
        "2001:0:102:304:0:0:5601:5601",
        "fd00::5efe:169.254.169.254",
        "2001:db8::200:5efe:a9fe:a9fe",
        "fd00:42::42",
        "metadata.tencentyun.com",
        "metadata.platformequinix.com",
    ],
)
def test_metadata_addresses_are_recognised_in_every_notation(host: str) -> None:
    assert is_metadata_address(host)


@pytest.mark.parametrize(
    "host",
    [
        "minio.minio",
        "10.0.0.1",
        "s3.eu-west-1.amazonaws.com",
        "::1",
        "1.2.3.4",
        "64:ff9b::102:304",
        "64:ff9b::100.100.100.201",
        "64:ff9b:1:102:3:400::",
    ],
)
def test_other_addresses_are_not(host: str) -> None:
    assert not is_metadata_address(host)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({"trainer": {"image": "other.example/x:1"}}, {"allowed_images": ["other.example/x"]}),
        ({"trainer": {"serviceAccountName": "ml"}}, {"allowed_service_accounts": ["team/ml"]}),
        ({"scheduling": {"priorityClassName": "high"}}, {"allowed_priority_classes": ["high"]}),
        ({"scheduling": {"workloadPriorityClassName": "urgent"}}, {"allowed_workload_priority_classes": ["urgent"]}),
        ({"scheduling": {"runtimeClassName": "kata"}}, {"allowed_runtime_classes": ["kata"]}),
        (
            {"scheduling": {"tolerations": [{"key": "node-role.kubernetes.io/control-plane"}]}},
            {"allowed_tolerations": ["node-role.kubernetes.io/*"]},
        ),
        (
            {"scheduling": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}},
            {"allowed_tolerations": ["*", "node.kubernetes.io/unschedulable"]},
        ),
        (
            {"scheduling": {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}},
            {"allowed_node_selectors": ["node-role.kubernetes.io/control-plane"]},
        ),
        ({"checkpoint": {"gracePeriodSeconds": 7200}}, {"max_grace_period_seconds": 7200}),
        ({"trainer": {"env": [{"name": "OFI_X", "value": "1"}]}}, {"allowed_env": ["NCCL_*", "OFI_X"]}),
        ({"trainer": {"env": [{"name": "OFI_X", "value": "1"}]}}, {"allowed_env": ["OFI_*"]}),
        ({"trainer": {"podAnnotations": {"cni.io/net": "a"}}}, {"allowed_pod_annotations": ["cni.io/*"]}),
        ({"trainer": {"podLabels": {"cost-centre": "a"}}}, {"allowed_pod_labels": ["cost-centre"]}),
    ],
)
def test_what_is_refused_by_default_is_allowed_by_its_setting(scene: Any, spec: Any, allowed: Any) -> None:
    job = scene(**spec).job
    assert "not allowed" in (find_refusal(job, Settings(trainer_image="registry.example/trainer:1")) or "")
    assert find_refusal(job, Settings(trainer_image="registry.example/trainer:1", **allowed)) is None


@pytest.mark.parametrize(
    "scheduling",
    [
        {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "dedicated", "value": "ml"}]},
        {"tolerations": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "tolerationSeconds": 5}]},
        {"nodeSelector": {"node.kubernetes.io/instance-type": "p5", "nvidia.com/gpu.product": "H100"}},
        {"runtimeClassName": "nvidia"},
    ],
)
def test_what_gpu_nodes_usually_need_is_allowed_by_default(scene: Any, scheduling: Any) -> None:
    job = scene(scheduling=scheduling).job
    assert find_refusal(job, Settings(trainer_image="registry.example/trainer:1")) is None


@pytest.mark.parametrize("strength", ["required", "preferred"])
def test_a_label_in_a_node_affinity_is_a_label_of_a_node_selector(scene: Any, strength: str) -> None:
    term = {"matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}
    terms = {"required": {"nodeSelectorTerms": [term]}, "preferred": [{"weight": 1, "preference": term}]}
    nodes = {f"{strength}DuringSchedulingIgnoredDuringExecution": terms[strength]}
    job = scene(scheduling={"affinity": {"nodeAffinity": nodes}}).job
    refusal = find_refusal(job, Settings(trainer_image="registry.example/trainer:1")) or ""
    assert "FINETUNE_ALLOWED_NODE_SELECTORS" in refusal


@pytest.mark.parametrize("strength", ["required", "preferred"])
def test_with_a_list_of_node_labels_no_node_is_chosen_by_its_name(scene: Any, strength: str) -> None:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["control-plane-1"]}]}
    terms = {"required": {"nodeSelectorTerms": [term]}, "preferred": [{"weight": 1, "preference": term}]}
    nodes = {f"{strength}DuringSchedulingIgnoredDuringExecution": terms[strength]}
    job = scene(scheduling={"affinity": {"nodeAffinity": nodes}}).job
    for allowed, is_refused in (["*"], False), (["gpu-pool"], True), (["gpu-pool", "metadata.name"], False):
        settings = Settings(trainer_image="registry.example/trainer:1", allowed_node_selectors=allowed)
        assert ("node selector metadata.name is not allowed" in (find_refusal(job, settings) or "")) is is_refused


@pytest.mark.parametrize(
    ("allowed", "accepted"),
    [("*", True), ("models", True), ("default/mod*", True), ("other/models", False), ("x", False)],
)
def test_claims_are_listed_by_name_or_with_their_namespace(scene: Any, allowed: str, accepted: bool) -> None:
    job = scene(modelCache={"claimName": "models"}).job
    settings = Settings(
        trainer_image="registry.example/trainer:1",
        allowed_model_cache_claims=[allowed.replace("default", job.key.namespace)],
    )
    refusal = find_refusal(job, settings)
    assert (refusal is None) is accepted, refusal


@pytest.mark.parametrize(
    ("endpoint", "allowed", "refusal"),
    [
        ("http://grader.team:8000/score", [], ""),
        ("http://grader.team:8000/score", ["http://*.team:8000/*"], ""),
        ("http://grader.other:8000/score", ["http://*.team:8000/*"], "add it to FINETUNE_ALLOWED_REWARD_ENDPOINTS"),
        ("http://169.254.169.254/score", ["*", "http://169.254.169.254/score"], "never allowed"),
    ],
)
def test_a_server_of_rewards_is_judged_by_its_address(
    scene: Any, endpoint: str, allowed: list[str], refusal: str
) -> None:
    rewards = [{"type": "Service", "service": {"endpoint": endpoint}}]
    job = scene(objective="RLHF", rlhf={"rewards": rewards}, dataset={"train": {"uri": "s3://bucket/rows.jsonl"}}).job
    found = find_refusal(job, Settings(trainer_image="x/y:1", allowed_reward_endpoints=allowed)) or ""
    assert refusal in found
    assert bool(found) == bool(refusal)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"uri": "pvc://models/llama"}},
        {"dataset": {"train": {"uri": "pvc://models/rows.jsonl"}}},
        {"tuning": {"initialAdapter": {"uri": "pvc://models/adapter"}}},
        {"evaluation": {"ability": {"uri": "pvc://models/questions.jsonl"}}},
    ],
)
def test_a_claim_of_a_source_is_refused_unless_it_is_listed(scene: Any, changes: Any) -> None:
    job = scene(**changes).job
    image = "registry.example/trainer:1"
    assert find_refusal(job, Settings(trainer_image=image, allowed_source_claims=["models"])) is None
    refusal = find_refusal(job, Settings(trainer_image=image, allowed_source_claims=["rows"])) or ""
    assert refusal.startswith(
        f"source claim {job.key.namespace}/models is not allowed: add it to FINETUNE_ALLOWED_SOUR"
    )


@pytest.mark.parametrize(
    "name", ["NCCL_DEBUG", "FI_PROVIDER", "GLOO_SOCKET_IFNAME", "UCX_TLS", "TORCH_NCCL_BLOCKING_WAIT"]
)
def test_variables_of_the_network_libraries_are_allowed_by_default(scene: Any, name: str) -> None:
    job = scene(trainer={"env": [{"name": name, "value": "1"}]}).job
    assert find_refusal(job, Settings(trainer_image="registry.example/trainer:1")) is None


@pytest.mark.parametrize(
    "name", ["OMP_PLACES", "TORCHELASTIC_X", "TORCH_HOME", "HOME", "XNCCL_DEBUG", "NCCL", "AWS_PROFILE"]
)
def test_other_variables_are_refused_with_the_setting_and_what_is_allowed(scene: Any, name: str) -> None:
    job = scene(trainer={"env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": name, "value": "1"}]}).job
    refusal = find_refusal(job, Settings(trainer_image="registry.example/trainer:1")) or ""
    assert refusal.startswith(
        f"environment variable {name} is not allowed: add it to FINETUNE_ALLOWED_ENV (allowed: NCCL_*"
    )


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_NET_PLUGIN",
        "NCCL_TUNER_PLUGIN",
        "FI_PROVIDER_PATH",
        "UCX_MODULE_DIR",
        "UCX_GDB_COMMAND",
        "NCCL_TOPO_FILE",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "TORCH_CUSTOM_PYTHONPATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "LD_PRELOAD",
        "LD_AUDIT",
    ],
)
def test_a_variable_that_loads_a_file_is_allowed_by_its_own_name_alone(scene: Any, name: str) -> None:
    job = scene(trainer={"env": [{"name": name, "value": "/workspace/model/x.txt"}]}).job
    for allowed in (["NCCL_*", "FI_*", "UCX_*", "TORCH_*"], ["*"]):
        settings = Settings(trainer_image="registry.example/trainer:1", allowed_env=allowed)
        assert f"environment variable {name} is not allowed: it loads a library, program or file" in (
            find_refusal(job, settings) or ""
        )
    assert find_refusal(job, Settings(trainer_image="registry.example/trainer:1", allowed_env=[name])) is None


def test_a_service_account_of_another_namespace_is_not_allowed(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_service_accounts=["other/ml"])
    assert find_refusal(scene(trainer={"serviceAccountName": "ml"}).job, settings)


def test_a_list_of_endpoints_excludes_all_others(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=["https://*.s3.example"])
    assert find_refusal(scene(storage={"endpoint": "https://eu.s3.example/"}).job, settings) is None
    assert find_refusal(scene(storage={"endpoint": "https://eu.s3.example.evil"}).job, settings)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://evil.example/x.s3.example",
        "https://evil.example/.s3.example/",
        "http://eu.s3.example",
        "https://s3.example",
        "https://eu.s3.example:8443",
        "https://eu.s3.example/other",
        "https://eu.s3.example/tenant/a/b",
        "https://eu.s3.example/tenant/..",
        "https://eu.s3.example/tenant/%2e%2e",
        "https://eu.s3.example/tenant/a\\..",
    ],
)
def test_a_star_in_the_list_stays_within_its_part_of_the_url(scene: Any, endpoint: str) -> None:
    listed = ["https://*.s3.example", "https://eu.s3.example/tenant/*"]
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=listed)
    assert "not allowed" in (find_refusal(scene(storage={"endpoint": endpoint}).job, settings) or "")


@pytest.mark.parametrize(
    ("endpoint", "pattern"),
    [
        ("https://EU.S3.example", "https://*.s3.example/"),
        ("http://minio.minio:9000/", "http://minio.minio:9000"),
        ("http://minio.minio:9000", "http://minio.*:*"),
        ("https://s3.example/tenant-7", "https://s3.example/tenant-*"),
        ("https://[2001:db8::1]:9000", "https://[2001:db8::1]:9000"),
    ],
)
def test_a_listed_endpoint_may_be_written_in_its_usual_forms(scene: Any, endpoint: str, pattern: str) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=[pattern])
    assert find_refusal(scene(storage={"endpoint": endpoint}).job, settings) is None


@pytest.mark.parametrize("storage", [None, {"region": "eu-west-1"}])
def test_a_job_without_an_endpoint_needs_aws_or_a_default_on_the_list(scene: Any, storage: Any) -> None:
    job = scene(**({"storage": storage} if storage else {})).job
    for listed, default, is_allowed in [
        ([], None, True),
        (["https://*.s3.example"], None, False),
        (["https://*.amazonaws.com"], None, True),
        (["https://s3.amazonaws.com"], None, True),
        (["https://*.s3.example"], "http://minio.minio:9000", True),
    ]:
        settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=listed, default_storage_endpoint=default)
        assert (find_refusal(job, settings) is None) == is_allowed


def test_no_list_allows_a_metadata_address(scene: Any) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_storage_endpoints=["*"])
    assert "never allowed" in (find_refusal(scene(storage={"endpoint": "http://169.254.169.254"}).job, settings) or "")


@pytest.mark.parametrize(
    "endpoint", ["http://169。254。169。254", "http://①69.254.169.254", "http://[x]", "http://[1:2]", "http://a:99999"]
)
def test_an_endpoint_that_was_stored_before_the_crd_refused_it_is_refused(scene: Any, endpoint: str) -> None:
    one = scene(storage={"endpoint": endpoint})
    one.settle()
    assert (one.status["phase"], one.status["reason"], one.children) == ("Pending", "InvalidSpec", {})
    assert "must be https://host, http://host or http://host:port in ASCII" in one.status["message"]


def test_settings_are_read_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "x/y:1")
    monkeypatch.setenv("FINETUNE_WATCH_NAMESPACES", "a, b,")
    monkeypatch.setenv("FINETUNE_TRAINER_RUN_AS_USER", "")
    monkeypatch.setenv("FINETUNE_DEFAULT_STORAGE_ENDPOINT", "")
    settings = Settings()
    assert settings.watch_namespaces == ["a", "b"]
    assert settings.trainer_run_as_user is None
    assert settings.default_storage() is None


HF = {"model": {"uri": "hf://owner/model"}}


@pytest.mark.parametrize(
    ("spec", "settings", "is_allowed"),
    [
        (HF, {}, True),
        (HF, {"allowed_hub_endpoints": ["https://*.example"]}, False),
        (HF, {"allowed_hub_endpoints": ["https://huggingface.co"]}, True),
        (HF, {"allowed_hub_endpoints": ["https://x.example"], "default_hub_endpoint": "http://hub.hub:80"}, True),
        ({}, {"allowed_hub_endpoints": ["https://*.example"]}, True),
        ({"hub": {"endpoint": "https://evil.test"}}, {"allowed_hub_endpoints": ["https://*.example"]}, False),
        (HF | {"hub": {"endpoint": "https://a.example"}}, {"allowed_hub_endpoints": ["https://*.example"]}, True),
        (
            {"dataset": {"train": {"uri": "hf://datasets/owner/rows"}}},
            {"allowed_hub_endpoints": ["https://*.example"]},
            False,
        ),
        (
            {"tuning": {"method": "LoRA", "initialAdapter": {"uri": "hf://owner/adapter"}}},
            {"allowed_hub_endpoints": ["https://*.example"]},
            False,
        ),
    ],
)
def test_a_hub_is_judged_when_something_comes_from_it_or_it_is_named(
    scene: Any, spec: Any, settings: Any, is_allowed: bool
) -> None:
    found = find_refusal(scene(**spec).job, Settings(trainer_image="registry.example/trainer:1", **settings))
    assert (found is None) == is_allowed
    assert is_allowed or "add it to FINETUNE_ALLOWED_HUB_ENDPOINTS" in (found or "")


def to_registry(repository: str, **fields: Any) -> dict[str, Any]:
    return {"output": {"uri": "s3://bucket/out", "oci": {"repository": repository, **fields}}}


@pytest.mark.parametrize(
    ("spec", "allowed", "words"),
    [
        (to_registry("registry.example:5000/team/bot"), [], None),
        (to_registry("registry.example:5000/team/bot"), ["https://registry.example:5000"], None),
        (to_registry("a.example/bot"), ["https://*.example"], None),
        ({}, ["https://*.example"], None),
        (to_registry("ghcr.io/team/bot"), ["https://*.example"], "https://ghcr.io is not allowed: add it to FINETUNE_"),
        (to_registry("a.example/bot", insecure=True), ["https://*.example"], "FINETUNE_ALLOWED_REGISTRY_ENDPOINTS"),
        (to_registry("169.254.169.254/latest"), [], "registry endpoint https://169.254.169.254 is a link-local"),
        (to_registry("metadata.google.internal/x"), ["https://*"], "which is never allowed"),
    ],
)
def test_a_registry_is_judged_by_its_host(scene: Any, spec: Any, allowed: list[str], words: str | None) -> None:
    found = find_refusal(scene(**spec).job, Settings(trainer_image="x/y:1", allowed_registry_endpoints=allowed))
    assert (found is None) == (words is None)
    assert (words or "") in (found or "")


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254", "http://2852039166/latest", "http://[fd00:ec2::254]", "http://metadata"]
)
def test_no_list_allows_a_metadata_address_as_a_hub(scene: Any, endpoint: str) -> None:
    settings = Settings(trainer_image="x/y:1", allowed_hub_endpoints=["*", endpoint])
    assert "never allowed" in (find_refusal(scene(hub={"endpoint": endpoint}).job, settings) or "")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("http_proxy", "http://user:hunter2@proxy:3128", "password"),
        ("https_proxy", "proxy:3128", "http://host:port"),
        ("default_hub_endpoint", "file:///etc", "must be https://host"),
        ("default_storage_endpoint", "http://user:pw@minio", "must be https://host"),
        ("default_hub_token_secret", "Not A Name", "pattern"),
    ],
)
def test_a_setting_that_no_pod_could_use_is_refused_at_start(name: str, value: str, word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(trainer_image="x/y:1", **{name: value})
    (problem,) = caught.value.errors()
    assert problem["loc"] == (name,)
    assert word in problem["msg"]
    assert "hunter2" not in problem["msg"]
