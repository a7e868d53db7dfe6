"""What a release asks the API server for, by the client of jobs, within its limits."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from finetune_api import names
from finetune_api.release import FineTuneReleaseStatus, KServeTarget
from finetune_operator.cluster import Cluster
from finetune_operator.controller.reconciler import build_merge_patch
from finetune_operator.kube.errors import AlreadyExists, ClusterError, Gone, NameTaken, Outdated, Refused
from finetune_operator.kube.objects import FineTuneJob, Job, Key, Object, controller_of
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.planted import find_foreign_content
from finetune_operator.release.manifests import build_selector, set_adapter
from finetune_operator.release.objects import Release, Service, count_ending, explain_pods, explain_rollout

PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
}


class ReleaseCluster:
    """Client of the API server for releases."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def get_release(self, key: Key) -> Release:
        """Read one release."""
        return Release.from_object(await self._cluster.request("GET", _path(key)))

    async def get_job(self, key: Key) -> FineTuneJob | None:
        """Read the job of a release; None if it does not exist."""
        try:
            return await self._cluster.get_job(key)
        except Gone:
            return None

    async def get_child(self, release: Release, name: str) -> Job | None:
        """Read a Job of a release; one of another owner raises NameTaken, or Outdated while it is being removed."""
        try:
            found = await self._cluster.request("GET", f"{PATHS['Job'].format(release.key.namespace)}/{name}")
        except Gone:
            return None
        if controller_of(found).get("uid") != release.uid:
            raise _explain_owner(release, "Job", found)
        return Job.from_object(found)

    async def list_pods(self, key: Key) -> tuple[Pod, ...]:
        """List the pods of a release, the oldest first."""
        path = f"/api/v1/namespaces/{key.namespace}/pods"
        page = await self._cluster.request("GET", path, query={"labelSelector": build_selector(key.name)})
        pods = sorted(page["items"], key=lambda one: str(one["metadata"].get("creationTimestamp")))
        return tuple(map(Pod.from_object, pods))

    async def get_service(self, namespace: str, target: KServeTarget, now: datetime) -> Service | None:
        """Read an LLMInferenceService and its Deployments; None if it, or its definition, does not exist."""
        try:
            service = Service.from_object(await self._cluster.request("GET", _service(namespace, target)))
        except Gone:
            return None
        rollouts, ending = [], 0
        for name in service.deployments:
            try:
                path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
                deployment = await self._cluster.request("GET", path)
            except Gone:
                rollouts.append(f"Deployment {name} does not exist")
            else:
                rollouts.append(await self._explain_rollout(namespace, deployment))
                ending += count_ending(deployment, now)
        return replace(service, rollout="; ".join(filter(None, rollouts)), ending=ending)

    async def _explain_rollout(self, namespace: str, deployment: Object) -> str:
        """Return why not only new pods answer, with the error of the newest of them."""
        why = explain_rollout(deployment)
        labels = deployment["spec"]["selector"].get("matchLabels") if why else None
        if not labels:
            return why
        query = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())}
        page = await self._cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods", query=query)
        return ": ".join(filter(None, (why, explain_pods(page["items"]))))

    async def set_adapter(self, namespace: str, target: KServeTarget, service: Service, uri: str | None) -> None:
        """Set the URI of one adapter of an LLMInferenceService, as it was read."""
        adapters = set_adapter(service.adapters, target.adapter_name, uri)
        body: Object = {
            "metadata": {"resourceVersion": service.resource_version},
            "spec": {"model": {"lora": {"adapters": adapters}}},
        }
        await self._cluster.request("PATCH", _service(namespace, target), body=body)

    async def create(self, release: Release, children: list[Object]) -> None:
        """Create what is missing; an existing object is a success if this release owns it and it has the content.

        One of another owner raises NameTaken, or Outdated while it is being removed.
        """
        for body in children:
            path, name = PATHS[body["kind"]].format(release.key.namespace), body["metadata"]["name"]
            try:
                await self._cluster.request("POST", path, body=body)
            except Refused as problem:
                raise problem.of(body["kind"], name) from problem
            except AlreadyExists:
                found = await self._cluster.request("GET", f"{path}/{name}")
                if controller_of(found).get("uid") != release.uid:
                    raise _explain_owner(release, body["kind"], found) from None
                if find_foreign_content(body["kind"], body, found):
                    raise NameTaken(body["kind"], name, names.RELEASE_KIND) from None

    async def delete_child(self, namespace: str, child: Job) -> None:
        """Delete exactly that Job (by UID), and its pods."""
        await self._cluster.delete(f"{PATHS['Job'].format(namespace)}/{child.name}", child.uid)

    async def remove_earlier(self, release: Release, children: list[Object], kinds: Sequence[str]) -> None:
        """Delete the objects of these kinds that earlier generations of a release have left."""
        kept = {(one["kind"], one["metadata"]["name"]) for one in children}
        query = {"labelSelector": build_selector(release.key.name)}
        for kind in kinds:
            path = PATHS[kind].format(release.key.namespace)
            for item in (await self._cluster.request("GET", path, query=query))["items"]:
                meta = item["metadata"]
                if controller_of(item).get("uid") == release.uid and (kind, meta["name"]) not in kept:
                    await self._cluster.delete(f"{path}/{meta['name']}", meta["uid"])

    async def patch_status(self, release: Release, status: FineTuneReleaseStatus) -> Release:
        """Write the status; raise `Outdated` if the release has changed since it was read."""
        change = build_merge_patch(release.status.to_wire(), status.to_wire())
        if not change:
            return release
        meta = {"uid": release.uid, "resourceVersion": release.resource_version}
        body = {"metadata": meta, "status": change}
        return Release.from_object(await self._cluster.request("PATCH", f"{_path(release.key)}/status", body=body))


def _explain_owner(release: Release, kind: str, found: Object) -> ClusterError:
    """Return what another owner's object means: the garbage collector removes those of a deleted release by itself."""
    meta, owner = found["metadata"], controller_of(found)
    is_earlier = (owner.get("kind"), owner.get("name")) == (names.RELEASE_KIND, release.key.name)
    if is_earlier or meta.get("deletionTimestamp"):
        return Outdated(f"{kind} {meta['name']} of an earlier owner is being removed")
    return NameTaken(kind, meta["name"], names.RELEASE_KIND)


def _path(key: Key) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{key.namespace}/{names.RELEASE_PLURAL}/{key.name}"


def _service(namespace: str, target: KServeTarget) -> str:
    return f"/apis/{names.KSERVE_PATH}/namespaces/{namespace}/{names.KSERVE_PLURAL}/{target.name}"
