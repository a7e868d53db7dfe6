from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from plugin_world import ENDED

from finetune_client.cluster.job import Job
from kubectl_finetune.commands import describe
from kubectl_finetune.commands import list as listing

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
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


def test_a_job_that_is_being_deleted_is_shown_so(job: Make, printed: Printed) -> None:
    found = job()
    found.raw["metadata"] |= {"deletionTimestamp": "2026-03-01T12:29:00Z", "finalizers": ["foregroundDeletion", "a/b"]}
    assert printed(listing.table([found], NOW, everywhere=False)).splitlines()[1].split()[:2] == ["one", "Deleting"]
    page = printed(describe.job_page(found, [], NOW))
    assert "since 2026-03-01T12:29:00Z, until these finalizers are removed: foregroundDeletion, a/b" in page


def test_a_list_has_the_queue(job: Make, printed: Printed) -> None:
    queued = job("one", {"scheduling": {"queueName": "team-queue"}})
    assert printed(listing.table([queued], NOW, everywhere=False)).split()[-3] == "team-queue"


@pytest.mark.parametrize(
    ("broken", "shown"),
    [
        ({"progress": {"step": "many\n"}}, ("status.progress.step", "one Training Chat QLoRA - -")),
        ({"phase": ["x"]}, ("status.phase", "one Pending Chat QLoRA 42%")),
        (["x"], ("status", "one Pending Chat - -")),
    ],
)
def test_a_job_whose_status_is_unreadable_is_listed_with_the_rest_of_it_and_a_note(
    front: Any, finetune: Callable[..., Any], job: Make, broken: Any, shown: tuple[str, str]
) -> None:
    raw = job().raw
    status = raw["status"] | broken if isinstance(broken, dict) else broken
    items = [raw | {"status": status}, job("two").raw]
    front.answers["finetunejobs"] = [(200, {"metadata": {}, "items": items})]
    done = finetune("list", "--context", "lab")
    assert (done.code, done.out.count("\n")) == (0, 3)
    rows = {row.split()[0]: row.split() for row in done.out.splitlines()}
    named, row = shown
    assert " ".join(rows["one"]).startswith(f"{row} ")
    assert rows["two"][:5] == ["two", "Training", "Chat", "QLoRA", "42%"]
    assert done.err.startswith(f"note: the status of one cannot be read ({named}): install the kubectl-finetune of")
    front.answers["one"] = [(200, items[0])]
    assert finetune("describe", "one", "--context", "lab").code == 1


def test_an_empty_list_names_the_selector_that_nothing_matches(front: Any, finetune: Callable[..., Any]) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [], "metadata": {}})]
    found = finetune("list", "-l", "team=support", "--context", "lab")
    assert (found.code, found.err) == (0, "no jobs in namespace team-a match team=support\n")
    found = finetune("list", "-A", "-l", "team=support", "--context", "lab")
    assert (found.code, found.err) == (0, "no jobs in any namespace match team=support\n")
