"""A creation that is repeated, because its answer was lost, finds the operator's own objects."""

from typing import Any

import pytest
from kubernetes.config import kube_config
from pod_reports import IMAGE

from finetune_operator.cluster import Cluster
from finetune_operator.kube.objects import Key
from finetune_operator.manifests.jobs import build_attempt, build_preflight
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

SETTINGS = Settings(
    trainer_image=IMAGE,
    isolate_training_pods=True,
    pod_egress=[{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}],
)


@pytest.mark.parametrize(
    "resources",
    [
        {"numNodes": 2, "gpusPerNode": 1},
        {"workspace": {"sizeLimit": "500Gi", "storageClassName": "fast"}},
        {"workspace": {"sizeLimit": "1.5Gi", "storageClassName": "fast"}},
        {"shmSize": "1024Mi", "workspace": {"sizeLimit": "0.5Gi"}},
        {"shmSize": 1073741824},
    ],
)
async def test_what_the_api_server_has_stored_is_the_operators_own(
    world: Any, access: Any, monkeypatch: pytest.MonkeyPatch, resources: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(access.kubeconfig))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(access.kubeconfig))  # read at the import
    world.create(resources=resources, tuning={"method": "LoRA"})
    cluster = Cluster(SETTINGS, Metrics())
    job = await cluster.get_job(Key(world.namespace, "one"))
    for child in (build_preflight(job, SETTINGS, IMAGE), build_attempt(job, SETTINGS, IMAGE, 1)):
        made = await cluster.create_child(job, child)
        found = await cluster.create_child(job, child)
        assert found.uid == made.uid
    await cluster.close()
