"""`suspend`, `resume` and `cancel`: what a user does to a job that has not ended."""

from collections.abc import Callable

from kubectl_finetune.cluster.client import Cluster
from kubectl_finetune.cluster.job import Job
from kubectl_finetune.errors import PluginError

Tell = Callable[[str], None]


def set_suspended(cluster: Cluster, names: list[str], *, wanted: bool, tell: Tell) -> None:
    """Suspends or resumes each job; all of them are looked at before one is changed."""
    word = "suspended" if wanted else "resumed"
    for job in _running(cluster, names, "suspend" if wanted else "resume"):
        if bool(job.field("suspend")) == wanted:
            tell(f"{job.name} is {'suspended' if wanted else 'not suspended'} already")
            continue
        cluster.patch_spec(job.name, {"suspend": wanted})
        step = job.status.checkpoint.step if job.status.checkpoint else None
        goes_on = f" and goes on from step {step}" if step is not None and not wanted else ""
        tell(f"{job.name} {word}{goes_on}")


def cancel(cluster: Cluster, names: list[str], is_sure: Callable[[str], bool], tell: Tell) -> None:
    """Deletes each job that somebody is sure about; all of them are looked at first."""
    for job in _running(cluster, names, "cancel"):
        done = job.status.progress.display if job.status.progress and job.status.progress.display else "nothing"
        question = f"Cancel {job.name} in {job.namespace} ({job.phase}, {done} done)? Its record and logs go with it."
        if not is_sure(question):
            tell(f"{job.name} goes on")
            continue
        cluster.delete_job(job)
        tell(f"{job.name} cancelled; what it has written stays at {job.field('output.uri')}")


def _running(cluster: Cluster, names: list[str], what: str) -> list[Job]:
    jobs = [cluster.get_job(name) for name in names]
    for job in jobs:
        if job.has_ended:
            fix = f"to remove its record: kubectl delete finetunejob {job.name} -n {job.namespace}"
            raise PluginError(f"{job.name} has ended ({job.phase}): there is nothing to {what}", fix)
    return jobs
