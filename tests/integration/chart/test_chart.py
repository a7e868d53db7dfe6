"""What the Helm chart installs: exact rights, closed values, nothing privileged. Rendered by the real helm."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, ROOT, of_kind, pod_spec, render, template

import finetune_api
from finetune_api import handoff
from finetune_operator.settings import Settings

RIGHTS = {
    ("finetune.dev", "finetunejobs"): ["get", "list", "watch"],
    ("finetune.dev", "finetunejobs/status"): ["patch"],
    ("batch", "jobs"): ["get", "list", "watch", "create", "patch", "delete"],
    ("", "pods"): ["list", "watch"],
    ("", "configmaps"): ["get", "list", "create", "delete"],
    ("", "services"): ["get", "list", "create", "delete"],
    ("", "events"): ["list"],
    ("events.k8s.io", "events"): ["create", "patch"],
    ("kueue.x-k8s.io", "workloads"): ["list", "watch", "patch"],
    ("networking.k8s.io", "networkpolicies"): ["get", "list", "create", "delete"],
}


def environment(helm: str, *arguments: str) -> dict[str, Any]:
    (container,) = pod_spec(render(helm, *arguments))["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def rights(role: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    return {
        (group, name): rule["verbs"]
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for name in rule["resources"]
    }


def test_the_operator_gets_exactly_these_rights(helm: str) -> None:
    documents = render(helm)
    (binding,) = of_kind(documents, "ClusterRoleBinding")
    (role,) = [
        one for one in of_kind(documents, "ClusterRole") if one["metadata"]["name"] == binding["roleRef"]["name"]
    ]
    assert rights(role) == RIGHTS
    assert [(one["name"], one["namespace"]) for one in binding["subjects"]] == [("release-finetune-operator", "system")]
    (lease,) = of_kind(documents, "Role")
    (binding,) = of_kind(documents, "RoleBinding")
    assert [(rule["resources"], rule["verbs"]) for rule in lease["rules"]] == [
        (["leases"], ["create"]),
        (["leases"], ["get", "update"]),
    ]
    assert binding["roleRef"]["name"] == lease["metadata"]["name"]


def test_the_documented_rights_are_the_granted_ones() -> None:
    text = (ROOT / "operator" / "README.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"```yaml\n(rules:\n.*?)```", text, flags=re.DOTALL)
    assert rights(yaml.safe_load(documented)) == RIGHTS


def test_a_namespaced_operator_gets_roles_and_is_bound_to_no_cluster_role(helm: str) -> None:
    documents = render(helm, "--set", "watchNamespaces={a,b}")
    assert of_kind(documents, "ClusterRoleBinding") == []
    assert {one["roleRef"]["kind"] for one in of_kind(documents, "RoleBinding")} == {"Role"}
    *roles, _ = of_kind(documents, "Role")
    assert [role["metadata"]["namespace"] for role in roles] == ["a", "b"]
    assert all(rights(role) == RIGHTS for role in roles)


def test_releases_are_served_only_if_asked_for(helm: str) -> None:
    definitions = {one["metadata"]["name"] for one in of_kind(render(helm), "CustomResourceDefinition")}
    assert definitions == {"finetunejobs.finetune.dev"}
    assert "FINETUNE_RELEASES" not in environment(helm)
    asked = ("--set", "release.enabled=true,watchNamespaces={a}")
    documents = render(helm, *asked)
    crd = next(one for one in of_kind(documents, "CustomResourceDefinition") if "releases" in one["metadata"]["name"])
    plain = yaml.safe_load((ROOT / "crds" / "finetunereleases.yaml").read_text(encoding="utf-8"))
    assert crd["spec"] == plain["spec"]
    role, _ = of_kind(documents, "Role")
    own = {
        ("finetune.dev", "finetunereleases"): ["get", "list", "watch"],
        ("finetune.dev", "finetunereleases/status"): ["patch"],
    }
    assert rights(role) == RIGHTS | own
    assert environment(helm, *asked)["FINETUNE_RELEASES"] == "true"
    role, _ = of_kind(render(helm, *asked, "--set", "release.kserve=true"), "Role")
    of_kserve = {("serving.kserve.io", "llminferenceservices"): ["get", "patch"], ("apps", "deployments"): ["get"]}
    assert rights(role) == RIGHTS | own | of_kserve


@pytest.mark.parametrize("egress", ["false", "true"])
def test_the_operator_gets_rights_on_network_policies_only_for_those_that_it_makes(helm: str, egress: str) -> None:
    given = f"networkPolicy.trainingPods=false,networkPolicy.egress.enabled={egress},watchNamespaces={{a}}"
    role, _ = of_kind(render(helm, "--set", given), "Role")
    assert (("networking.k8s.io", "networkpolicies") in rights(role)) is (egress == "true")


def test_the_operator_gets_the_policies_of_the_pods_as_settings_that_it_reads(helm: str) -> None:
    found = _settings(helm)
    assert (found.isolate_training_pods, found.progress_clients, found.pod_egress) == (True, None, None)
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}
    egress = {"enabled": True, "trainingPods": False, "egress": {"enabled": True, "rules": [rule]}}
    found = _settings(helm, "--set-json", f"networkPolicy={json.dumps(egress)}")
    assert (found.isolate_training_pods, found.pod_egress) == (False, [rule])
    operator, scraper = found.progress_clients or []
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "system"}
    assert scraper == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert _settings(helm, "--set", "networkPolicy.egress.enabled=true").pod_egress == []


def _settings(helm: str, *arguments: str) -> Settings:
    given = {name: value for name, value in environment(helm, *arguments).items() if value is not None}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        return Settings()


def test_a_misspelt_value_is_refused_by_name(helm: str) -> None:
    done = template(helm, "--set", "defaultStorage.endpont=http://x")
    assert done.returncode != 0
    assert "endpont" in done.stderr


def test_the_crd_is_installed_by_value_and_kept_on_uninstall(helm: str) -> None:
    (crd,) = of_kind(render(helm), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    plain = yaml.load((ROOT / "crds" / "finetunejobs.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    assert crd["spec"] == plain["spec"]
    assert of_kind(render(helm, "--set", "crds.enabled=false"), "CustomResourceDefinition") == []


def test_the_operator_runs_restricted(helm: str) -> None:
    pod = pod_spec(render(helm))
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_an_installer_without_rights_in_the_cluster_can_have_objects_of_namespaces_alone(helm: str) -> None:
    given = "watchNamespaces={a,b},crds.enabled=false,rbac.aggregateToDefaultRoles=false,networkPolicy.enabled=true"
    documents = render(helm, "--set", given)
    assert {one["metadata"].get("namespace") for one in documents} == {"system", "a", "b"}


def test_a_variable_that_the_chart_sets_too_is_there_once(helm: str) -> None:
    # Server-side apply, which is the default of Helm 4, refuses a name that is given twice.
    given = "extraEnv[0].name=FINETUNE_LOG_LEVEL,extraEnv[0].value=DEBUG,extraEnv[1].name=OWN,extraEnv[1].value=x"
    variables = pod_spec(render(helm, "--set", given))["containers"][0]["env"]
    names = [one["name"] for one in variables]
    assert sorted(set(names)) == sorted(names)
    assert {"name": "FINETUNE_LOG_LEVEL", "value": "DEBUG"} in variables
    assert set(environment(helm)) | {"OWN"} == set(names)


def test_two_releases_of_one_name_in_different_namespaces_share_no_object(helm: str) -> None:
    own = "crds.enabled=false,rbac.aggregateToDefaultRoles=false,networkPolicy.enabled=true"
    given = f"{own},admissionPolicy.enabled=true,flowSchema.enabled=true,monitoring.dashboards=true"
    made = [
        {
            (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
            for one in render(helm, "--set", f"{given},watchNamespaces={{team-{name}}}", "--namespace", name)
        }
        for name in ("a", "b")
    ]
    assert made[0] & made[1] == set()


class UniqueKeys(yaml.CSafeLoader):
    """A loader that refuses a key that is given twice, as kustomize does."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        assert sorted(set(keys)) == sorted(keys)
        return super().construct_mapping(node, deep)


def test_every_object_carries_the_common_labels_once_and_the_pod_its_own(helm: str) -> None:
    values = {
        "commonLabels": {"team": "ml", "tier": "front", "release": "common"},
        "podLabels": {"tier": "back"},
        "crds": {"enabled": False},
        "release": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "admissionPolicy": {"enabled": True},
        "flowSchema": {"enabled": True},
        "replicas": 2,
        "monitoring": {"dashboards": True, "scrapeAnnotations": True, "labels": {"release": "stack"}},
    }
    given = (word for name, value in values.items() for word in ("--set-json", f"{name}={json.dumps(value)}"))
    done = template(helm, *given, "--api-versions", "monitoring.coreos.com/v1")
    assert done.returncode == 0, done.stderr
    documents = [one for one in yaml.load_all(done.stdout, UniqueKeys) if one]
    without = [one for one in documents if one["metadata"]["labels"].get("team") != "ml"]
    assert [(one["kind"], one["metadata"]["name"]) for one in without] == []
    assert all(one["metadata"]["labels"]["helm.sh/chart"].startswith("finetune-operator-") for one in documents)
    monitors = {one["kind"] for one in documents if one["metadata"]["labels"]["release"] == "stack"}
    assert monitors == {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    (deployment,) = of_kind(documents, "Deployment")
    assert deployment["metadata"]["labels"]["tier"] == "front"
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= {"team": "ml", "tier": "back"}.items()
    assert "team" not in deployment["spec"]["selector"]["matchLabels"]
    (monitor,) = of_kind(documents, "ServiceMonitor")
    chosen = monitor["spec"]["selector"]["matchLabels"].items()
    assert len([one for one in of_kind(documents, "Service") if chosen <= one["metadata"]["labels"].items()]) == 1


def test_a_label_that_selectors_need_cannot_be_set(helm: str) -> None:
    for name in ("commonLabels", "podLabels"):
        done = template(helm, "--set-json", f'{name}={{"app.kubernetes.io/name":"other"}}')
        assert done.returncode != 0
        assert "app.kubernetes.io/name" in done.stderr


@pytest.mark.parametrize("given", ["", "1000650000", "65532"])
def test_the_operators_user_is_given_or_left_to_the_platform(helm: str, given: str) -> None:
    found = pod_spec(render(helm, "--set-string", f"runAsUser={given}"))["securityContext"]
    assert found["runAsNonRoot"] is True
    assert [found.get("runAsUser"), found.get("runAsGroup")] == ([int(given)] * 2 if given else [None, None])


def test_images_are_named_by_digest_where_one_is_given(helm: str) -> None:
    first, second = (f"sha256:{digit * 64}" for digit in "12")
    documents = render(helm, "--set", f"image.digest={first},trainer.image.digest={second},image.tag=ignored")
    (container,) = pod_spec(documents)["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["image"] == f"finetune-operator@{first}"
    assert given["FINETUNE_TRAINER_IMAGE"] == f"finetune-trainer@{second}"
    assert "FINETUNE_PREFLIGHT_IMAGE" not in given


def test_preflight_has_an_image_of_its_own_if_one_is_named(helm: str) -> None:
    documents = render(
        helm, "--set-string", "preflight.image.repository=registry.example/preflight,preflight.image.tag=2"
    )
    (container,) = pod_spec(documents)["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["FINETUNE_PREFLIGHT_IMAGE"] == "registry.example/preflight:2"


def test_the_probes_ask_for_what_the_operator_serves(helm: str) -> None:
    (container,) = pod_spec(render(helm))["containers"]
    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {probe["port"] for probe in asked.values()} == {"health"}
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    served = {name: Settings.model_fields[f"{name}_port"].default for name in ("metrics", "health")}
    assert ports == served == {"metrics": 8080, "health": 8081}


def test_every_setting_that_the_chart_passes_is_one_that_the_operator_reads(helm: str) -> None:
    prefix = Settings.model_config["env_prefix"]
    read = {f"{prefix}{name}".upper() for name in Settings.model_fields}
    assert set(environment(helm)) - read == set()


@pytest.mark.parametrize(
    ("given", "passed"),
    [("1000650000", "1000650000"), ('"1000650000"', "1000650000"), ("65532", "65532"), ('""', ""), ("0", "0")],
)
def test_a_user_id_in_a_values_file_reaches_the_operator_as_digits(
    helm: str, tmp_path: Path, given: str, passed: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"trainer: {{runAsUser: {given}}}", encoding="utf-8")
    assert environment(helm, "--values", str(values))["FINETUNE_TRAINER_RUN_AS_USER"] == passed


@pytest.mark.parametrize(
    ("given", "passed"), [("{}", ("1", "2Gi")), ('{cpu: 2, memory: ""}', ("2", "")), ("{cpu: 500m}", ("500m", "2Gi"))]
)
def test_the_default_requests_reach_the_operator(
    helm: str, tmp_path: Path, given: str, passed: tuple[str, str]
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"trainer: {{defaultRequests: {given}}}", encoding="utf-8")
    found = environment(helm, "--values", str(values))
    assert (found["FINETUNE_DEFAULT_CPU_REQUEST"], found["FINETUNE_DEFAULT_MEMORY_REQUEST"]) == passed


def test_the_defaults_of_jobs_reach_the_operator_as_it_reads_them(helm: str, tmp_path: Path) -> None:
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 31536000}
    defaults = {
        "imagePullSecrets": [{"name": "pull"}, {"name": "mirror"}],
        "tolerations": [toleration],
        "nodeSelector": {"node-role.kubernetes.io/gpu": ""},
        "runtimeClassName": "sandboxed",
        "startDeadlineSeconds": 31536000,
        "activeDeadlineSeconds": "86400",
        "ttlSecondsAfterFinished": 0,
    }
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"trainer": {"defaults": defaults}}), encoding="utf-8")
    read = settings_of(environment(helm, "--values", str(values)))
    assert read.default_image_pull_secrets == ["pull", "mirror"]
    (found,) = read.default_tolerations or []
    assert found.model_dump(by_alias=True, exclude_none=True) == toleration
    assert read.default_node_selector == {"node-role.kubernetes.io/gpu": ""}
    assert read.default_runtime_class == "sandboxed"
    assert (read.default_start_deadline_seconds, read.default_active_deadline_seconds) == (31536000, 86400)
    assert read.default_ttl_seconds_after_finished == 0


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "gpu", "operator": "Exists", "value": "x"},
        {"key": "gpu", "tolerationSeconds": 60},
        {"operator": "Exists"},
    ],
)
def test_a_default_toleration_with_which_no_pod_can_be_made_is_refused(helm: str, toleration: dict[str, Any]) -> None:
    done = template(helm, "--set-json", f"trainer.defaults.tolerations=[{json.dumps(toleration)}]")
    assert done.returncode != 0
    assert "/trainer/defaults/tolerations/0" in done.stderr


def test_prefixes_with_the_namespace_reach_the_operator_and_patterns_do_not(helm: str) -> None:
    given = ["s3://bucket/{namespace}/", "s3://shared/models"]
    found = environment(helm, "--set-json", f"allowed.storagePrefixes={json.dumps(given)}")
    assert settings_of(found).allowed_storage_prefixes == given
    assert "storagePrefixes" in template(helm, "--set-json", 'allowed.storagePrefixes=["s3://bucket/*/"]').stderr


def test_the_charts_defaults_are_those_of_the_operator(helm: str) -> None:
    read = settings_of(environment(helm))
    own = Settings(trainer_image=read.trainer_image, no_proxy=read.no_proxy)
    differs = {name for name in Settings.model_fields if getattr(read, name) != getattr(own, name)}
    # Both are off without the rights that the chart grants.
    assert differs <= {"isolate_training_pods", "lease_namespace", "lease_name"}


def settings_of(given: dict[str, Any]) -> Settings:
    """Return what the operator reads from these variables."""
    prefix = str(Settings.model_config["env_prefix"]).lower()
    return Settings(**{name.lower().removeprefix(prefix): value for name, value in given.items() if value is not None})


def test_a_runtime_class_that_is_a_default_passes_the_admission_policy(helm: str) -> None:
    given = "admissionPolicy.enabled=true,trainer.defaults.runtimeClassName=sandboxed"
    policy, _ = of_kind(render(helm, "--set", given), "ValidatingAdmissionPolicy")
    (runtimes,) = [one["expression"] for one in policy["spec"]["variables"] if one["name"] == "runtimeClasses"]
    assert json.loads(runtimes) == ["nvidia", "nvidia-cdi", "nvidia-legacy", "sandboxed"]


def test_the_operators_limits_are_values(helm: str) -> None:
    read = settings_of(environment(helm, "--set", "workers=32,apiQps=200,apiBurst=400,resyncSeconds=600"))
    assert (read.workers, read.api_qps, read.api_burst, read.resync_seconds) == (32, 200, 400, 600)


def test_how_long_finished_jobs_have_series_is_a_value(helm: str) -> None:
    for given, seconds in ((), 604_800), (("--set", "monitoring.finishedJobSeconds=86400"), 86_400):
        assert settings_of(environment(helm, *given)).finished_job_metrics_seconds == seconds


def test_the_operator_leaves_a_lost_node_after_a_minute(helm: str) -> None:
    own = {"key": "infra", "operator": "Exists"}
    for seconds, given in ((60, ""), (5, "unreachableTolerationSeconds=5")):
        lost = [
            {
                "key": f"node.kubernetes.io/{key}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": seconds,
            }
            for key in ("not-ready", "unreachable")
        ]
        assert pod_spec(render(helm, "--set", given))["tolerations"] == lost
        more = ("--set-json", f"tolerations=[{json.dumps(own)}]")
        assert pod_spec(render(helm, "--set", given, *more))["tolerations"] == [own, *lost]
    left_to_the_cluster = render(helm, "--set", "unreachableTolerationSeconds=")
    assert "tolerations" not in pod_spec(left_to_the_cluster)


def test_the_operator_gets_no_variables_of_services_and_the_volumes_that_are_named(helm: str) -> None:
    volume, mount = (
        {"name": "ca", "configMap": {"name": "ca"}},
        {"name": "ca", "mountPath": "/etc/ca", "readOnly": True},
    )
    plain = pod_spec(render(helm))
    assert plain["enableServiceLinks"] is False
    assert "volumes" not in plain
    more = (
        "--set-json",
        f"extraVolumes=[{json.dumps(volume)}]",
        "--set-json",
        f"extraVolumeMounts=[{json.dumps(mount)}]",
    )
    pod = pod_spec(render(helm, *more))
    assert pod["volumes"] == [volume]
    assert pod["containers"][0]["volumeMounts"] == [mount]


def test_the_number_of_old_replica_sets_is_a_value(helm: str) -> None:
    for given, kept in (("", 10), ("revisionHistoryLimit=0", 0)):
        (deployment,) = of_kind(render(helm, "--set", given), "Deployment")
        assert deployment["spec"]["revisionHistoryLimit"] == kept


def test_replicas_elect_a_leader_and_a_drain_leaves_one(helm: str) -> None:
    (alone,) = of_kind(render(helm), "Deployment")
    assert (alone["spec"]["replicas"], of_kind(render(helm), "PodDisruptionBudget")) == (1, [])
    several = render(helm, "--set", "replicas=2")
    (deployment,) = of_kind(several, "Deployment")
    (budget,) = of_kind(several, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] == 2
    assert budget["spec"]["minAvailable"] == 1
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    (role,) = (one for one in of_kind(several, "Role") if one["metadata"]["name"].endswith("-lease"))
    given = environment(helm)
    assert role["metadata"]["namespace"] == given["FINETUNE_LEASE_NAMESPACE"]
    assert role["rules"][1]["resourceNames"] == [given["FINETUNE_LEASE_NAME"]]


def test_chart_and_code_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == finetune_api.__version__


def test_hub_and_proxy_values_reach_the_operator(helm: str) -> None:
    given = environment(
        helm,
        *("--set", "defaultHub.endpoint=https://mirror.example,defaultHub.tokenSecret=hf,defaultHub.caSecret=ca"),
        *("--set", "proxy.https=http://proxy.example:3128,allowed.hubEndpoints={https://*.example,http://hub.hub}"),
        *("--set", "allowed.trackingEndpoints={http://mlflow.mlflow:5000}"),
        *("--set", "allowed.registryEndpoints={https://registry.example}"),
    )
    assert given["FINETUNE_DEFAULT_HUB_ENDPOINT"] == "https://mirror.example"
    assert (given["FINETUNE_DEFAULT_HUB_TOKEN_SECRET"], given["FINETUNE_DEFAULT_HUB_CA_SECRET"]) == ("hf", "ca")
    assert given["FINETUNE_HTTPS_PROXY"] == "http://proxy.example:3128"
    assert given["FINETUNE_NO_PROXY"] == "localhost,127.0.0.1,.svc,.cluster.local"
    assert given["FINETUNE_ALLOWED_HUB_ENDPOINTS"] == "https://*.example,http://hub.hub"
    assert given["FINETUNE_ALLOWED_TRACKING_ENDPOINTS"] == "http://mlflow.mlflow:5000"
    assert given["FINETUNE_ALLOWED_REGISTRY_ENDPOINTS"] == "https://registry.example"


def test_a_proxy_with_a_password_is_refused_before_it_is_in_a_pod(helm: str) -> None:
    done = template(helm, "--set", "proxy.http=http://user:secret@proxy:3128")
    assert done.returncode != 0
    assert "proxy" in done.stderr


def test_the_documented_policy_for_jobs_is_the_one_that_the_chart_makes(helm: str) -> None:
    text = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(apiVersion: networking.*?)```", text, flags=re.DOTALL)
    documented = yaml.safe_load(block)["spec"]
    given = ("networkPolicy.enabled=true,watchNamespaces={a}", "networkPolicy.scrapers=null")
    documents = render(helm, *(word for one in given for word in ("--set", one)), "--namespace", "finetune-system")
    (made,) = [one["spec"] for one in of_kind(documents, "NetworkPolicy") if one["metadata"]["namespace"] == "a"]
    (operator,) = made["ingress"][0]["from"]
    wanted = documented["ingress"][0]["from"][0]
    assert wanted["namespaceSelector"] == operator["namespaceSelector"]
    assert wanted["podSelector"]["matchLabels"].items() <= operator["podSelector"]["matchLabels"].items()
    assert [port["port"] for port in documented["ingress"][0]["ports"]] == [handoff.PROGRESS_PORT]
    assert documented["ingress"][1:] == made["ingress"][1:]
    assert documented["podSelector"] == made["podSelector"]


def test_the_documented_egress_rules_are_values_of_the_chart(helm: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(networkPolicy:.*?)```", text, flags=re.DOTALL)
    (tmp_path / "values.yaml").write_text(block)
    storage, https = _settings(helm, "--values", str(tmp_path / "values.yaml")).pod_egress or []
    assert (storage["ports"], https["ports"]) == ([{"port": 9000}], [{"port": 443}])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", ["every namespace", "finetunejobs -A", "no default storage", "trainer.image has no digest"]),
        ("watchNamespaces={a,b}", ["in a, b.", "finetunejobs -n a"]),
        ("defaultStorage.credentialsSecret=keys", ["create secret generic keys"]),
        ("networkPolicy.enabled=true", ["one in each namespace"]),
        ("crds.enabled=false", ["until finetunejobs.finetune.dev is installed"]),
        ("crds.keep=false", ["deletes every FineTuneJob"]),
    ],
)
def test_notes_name_the_next_steps_and_what_the_values_leave_open(helm: str, given: str, said: list[str]) -> None:
    notes = install_notes(helm, given)
    assert [words for words in said if words not in notes] == []


def test_notes_warn_of_nothing_that_is_set(helm: str) -> None:
    digest = "sha256:" + "1" * 64
    assert "NOTE" not in install_notes(helm, f"trainer.image.digest={digest},defaultStorage.endpoint=http://s3.example")


def install_notes(helm: str, given: str) -> str:
    command = [helm, "install", "release", str(CHART), "--namespace", "system", "--dry-run=client", "--set", given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.partition("NOTES:")[2]
