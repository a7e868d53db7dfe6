"""`suspend`, `resume` and `cancel`, for jobs that have not ended."""

from collections.abc import Callable

from finetune_client.cluster.client import Cluster
from finetune_client.cluster.job import Job
from finetune_client.errors import FineTuneError

Report = Callable[[str], None]


def set_suspended(cluster: Cluster, names: list[str], *, wanted: bool, report: Report) -> None:
    """Suspend or resume each job; all of them are read before the first is changed."""
    word = "suspended" if wanted else "resumed"
    for job in _running(cluster, names, "suspend" if wanted else "resume"):
        if bool(job.field("suspend")) == wanted:
            report(f"{job.name} is {'already' if wanted else 'not'} suspended")
            continue
        cluster.patch_spec(job.name, {"suspend": wanted})
        step = job.status.checkpoint.step if job.status.checkpoint else None
        place = f" from step {step}" if step is not None and not wanted else ""
        report(f"{job.name} {word}{place}")


def delete_jobs(cluster: Cluster, names: list[str], is_sure: Callable[[str], bool], report: Report) -> None:
    """Delete each job that the user confirms; all of them are read first."""
    for job in _running(cluster, names, "cancel"):
        percent = job.status.progress and job.status.progress.percent
        done = "nothing" if percent is None else f"{percent}%"
        question = f"Cancel {job.name} in {job.namespace} ({job.phase}, {done} done)? Its record and logs go with it."
        if not is_sure(question):
            report(f"{job.name} not cancelled")
            continue
        # It may have ended since the question.
        _require_running(cluster, cluster.get_controlled_job(job.name), "cancel")
        cluster.delete_job(job)
        report(f"{job.name} cancelled; its files stay at {job.field('output.uri')}")


def _running(cluster: Cluster, names: list[str], what: str) -> list[Job]:
    jobs = [cluster.get_controlled_job(name) for name in dict.fromkeys(names)]
    for job in jobs:
        _require_running(cluster, job, what)
    return jobs


def _require_running(cluster: Cluster, job: Job, what: str) -> None:
    if job.has_ended:
        fix = f"to remove its record: kubectl delete finetunejob {job.name} -n {job.namespace}{cluster.options}"
        raise FineTuneError(f"{job.name} has ended ({job.phase}): there is nothing to {what}", fix)
