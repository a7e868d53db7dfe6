"""The client: FineTuneJobs of one namespace."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.text.printable import printable
from finetune_client.errors import WrongUse
from finetune_client.jobs import FineTuneJob
from finetune_client.specs import Labels, Object, Spec, build_manifest, require_name

if TYPE_CHECKING:
    from finetune_client.cluster.client import Cluster

AGENT = "finetune-client"
"""Field manager of `apply`, and user agent."""
Jobs = list[FineTuneJob]


class FineTuneClient:
    """FineTuneJobs of one namespace; it does what your own rights in the cluster allow."""

    def __init__(
        self, namespace: str | None = None, *, context: str | None = None, kubeconfig: str | Path | None = None
    ) -> None:
        """Connect as kubectl does: the kubeconfig given, KUBECONFIG, ~/.kube/config, else the account of the pod.

        The namespace is that of the context by default.
        """
        from finetune_client.cluster.client import open_cluster  # noqa: PLC0415 - its library loads slowly

        path = Path(kubeconfig).expanduser() if kubeconfig else None
        self._cluster = open_cluster(path, context, namespace, AGENT)

    def __repr__(self) -> str:
        """Return the namespace and the API server, which notebooks show."""
        return f"<FineTuneClient {self.namespace} at {self._cluster.server}>"

    @property
    def namespace(self) -> str:
        """The namespace of its jobs."""
        return self._cluster.namespace

    def create(
        self,
        job: str | Path | Mapping[str, Any],
        spec: Spec | None = None,
        *,
        labels: Labels | None = None,
        annotations: Labels | None = None,
    ) -> FineTuneJob:
        """Create a job from a name and a spec, from a manifest, or from the path of one.

        Raises InvalidJob before the API server is asked if the job cannot run, and Conflict if the name is taken.
        """
        cluster, manifest = self._prepare(job, spec, labels, annotations)
        return FineTuneJob(cluster, cluster.create_job(manifest))

    def apply(
        self,
        job: str | Path | Mapping[str, Any],
        spec: Spec | None = None,
        *,
        labels: Labels | None = None,
        annotations: Labels | None = None,
        force: bool = False,
    ) -> FineTuneJob:
        """Create a job, or change the one of that name, as `kubectl apply --server-side` does.

        Raises Conflict if another program has set a field to another value; `force` takes the field over. Most fields
        are fixed at creation: the error names the field.
        """
        cluster, manifest = self._prepare(job, spec, labels, annotations)
        require_name(manifest["metadata"].get("name"))
        return FineTuneJob(cluster, cluster.apply_job(manifest, AGENT, force=force))

    def get(self, name: str) -> FineTuneJob:
        """Return a job; raise NotFound if there is none of that name."""
        return FineTuneJob(self._cluster, self._cluster.get_job(require_name(name)))

    def list(self, *, selector: str = "", all_namespaces: bool = False) -> Jobs:
        """Return the jobs of the namespace, or of all; `selector` is a label selector."""
        found = self._cluster.list_jobs(everywhere=all_namespaces, selector=selector)
        return [FineTuneJob(self._cluster.in_namespace(job.namespace), job) for job in found]

    def delete(self, name: str) -> None:
        """Delete a job with its pods, logs and history; its files in storage stay."""
        self._get_controlled(name).delete()

    def stop(self, name: str) -> None:
        """Suspend a job: the trainer saves a checkpoint and releases its GPUs."""
        self._get_controlled(name).stop()

    def resume(self, name: str) -> None:
        """Let a stopped job continue from its last checkpoint."""
        self._get_controlled(name).resume()

    def _get_controlled(self, name: str) -> FineTuneJob:
        """Return a job, if need be without parts of its status that only a newer client can read."""
        return FineTuneJob(self._cluster, self._cluster.get_controlled_job(require_name(name)))

    def _prepare(
        self,
        job: str | Path | Mapping[str, Any],
        spec: Spec | None,
        labels: Labels | None,
        annotations: Labels | None,
    ) -> "tuple[Cluster, Object]":
        manifest = build_manifest(job, spec, labels, annotations)
        named = manifest["metadata"].setdefault("namespace", self.namespace)
        if not isinstance(named, str) or not named:
            raise WrongUse(f"metadata.namespace {printable(str(named))} is not a name", "remove it, or write a name")
        return self._cluster.in_namespace(named), manifest
