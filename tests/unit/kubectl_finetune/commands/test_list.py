from collections.abc import Callable
from datetime import UTC, datetime

from kubectl_finetune.cluster.job import Job
from kubectl_finetune.commands import list as listing

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
ENDED = [
    {
        "type": "Complete",
        "status": "True",
        "reason": "Succeeded",
        "message": "Published to s3://b/out.",
        "lastTransitionTime": "2026-03-01T12:25:00Z",
    }
]
Make = Callable[..., Job]
Printed = Callable[..., str]


def test_a_list_has_a_line_for_each_job_and_running_jobs_come_first(job: Make, printed: Printed) -> None:
    jobs = [job("done", phase="Succeeded", conditions=ENDED), job("one")]
    header, first, second = printed(listing.table(jobs, NOW, everywhere=True)).splitlines()
    assert header.split()[:3] == ["NAMESPACE", "NAME", "PHASE"]
    assert first.split() == [
        *("team-a", "one", "Training", "Chat", "QLoRA", "42%", "56m40s", "1.4231", "1.5", "-", "PodsRunning", "30m00s")
    ]
    assert second.split()[:7] == ["team-a", "done", "Succeeded", "Chat", "QLoRA", "42%", "-"]


def test_a_list_of_one_namespace_shows_the_newest_first_and_dashes_for_what_is_not_known(
    job: Make, printed: Printed
) -> None:
    new = Job.from_object({"metadata": {"name": "new", "creationTimestamp": "2026-03-01T12:29:18Z"}})
    header, first, second = printed(listing.table([job(), new], NOW, everywhere=False)).splitlines()
    assert header.split()[:2] == ["NAME", "PHASE"]
    assert first.split() == ["new", "Pending", *"--------", "42s"]
    assert second.split()[0] == "one"


def test_a_list_has_the_queue(job: Make, printed: Printed) -> None:
    queued = job("one", {"scheduling": {"queueName": "team-queue"}})
    assert printed(listing.table([queued], NOW, everywhere=False)).split()[-3] == "team-queue"
