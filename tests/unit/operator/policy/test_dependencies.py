"""What a job needs from other jobs, as a table, and what it pins."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.handoff import Report
from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller.events import derive_events
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.manifests.jobs import build_config
from finetune_operator.policy import dependencies as parents
from finetune_operator.settings import Settings

CHILD: dict[str, Any] = {"lineage": {"parentRef": {"name": "sft"}}}
CONTINUING = CHILD | {"tuning": {"method": "LoRA", "initialAdapter": {"fromParent": True}}}
SCORED: dict[str, Any] = {"objective": "RLHF", "rlhf": {"rewardModel": {"jobRef": {"name": "scorer"}}}}
REWARD: dict[str, Any] = {"objective": "RewardModel"}
DIGEST = "ab" * 32


@pytest.fixture
def job(scene: Callable[..., Any]) -> Callable[..., FineTuneJob]:
    """A job in a phase: created, training, complete or failed."""

    def build(
        name: str, phase: str = "", method: str = "", adapter: str = "s3://bucket/sft/adapter", **spec: Any
    ) -> FineTuneJob:
        one = scene(name, **spec)
        one.object["metadata"]["uid"] = f"{name}-uid"
        ends = {"Succeeded": "Complete", "Failed": "Failed"}
        condition = {"type": ends.get(phase), "status": "True", "lastTransitionTime": "2026-03-01T12:00:00Z"}
        artifacts = {"uri": f"s3://bucket/{name}", "manifestSHA256": DIGEST, "adapterURI": adapter or None}
        if phase:
            one.object["status"] = {"phase": phase, "reason": "Diverged", "message": "NaN", "observedGeneration": 1}
        if method:
            one.object["status"]["resolved"] = {"method": method}
        if phase in ends:
            one.object["status"]["conditions"] = [condition | {"reason": "Word", "message": ""}]
        if phase == "Succeeded":
            one.object["status"]["artifacts"] = {key: value for key, value in artifacts.items() if value}
        made: FineTuneJob = one.job
        return made

    return build


TABLE = [
    ("a parent that is not there", CHILD, [], "WaitingForParent", "FineTuneJob sft (lineage.parentRef) does not exist"),
    ("a name that may be mistyped", CHILD, [], "WaitingForParent", "check the name in lineage.parentRef"),
    ("a parent without a status", CHILD, [("sft", {})], "WaitingForParent", "it has just been created"),
    ("a parent that trains", CHILD, [("sft", {"phase": "Training"})], "WaitingForParent", "it is Training"),
    ("a parent that has failed", CHILD, [("sft", {"phase": "Failed"})], "ParentFailed", "failed (Diverged: NaN)"),
    ("a complete parent", CHILD, [("sft", {"phase": "Succeeded"})], None, ""),
    ("itself", {"lineage": {"parentRef": {"name": "one"}}}, [("one", {})], "InvalidSpec", "one → one"),
    (
        "a circle of three",
        CHILD,
        [
            ("sft", {"lineage": {"parentRef": {"name": "first"}}}),
            ("first", {"lineage": {"parentRef": {"name": "one"}}}),
        ],
        "InvalidSpec",
        "one → sft → first → one",
    ),
    (
        "a circle that leads through a reward model",
        CHILD,
        [("sft", SCORED), ("scorer", REWARD | {"lineage": {"parentRef": {"name": "one"}}})],
        "InvalidSpec",
        "one → sft → scorer → one",
    ),
    (
        "a circle further up, which is not the job's own",
        CHILD,
        [
            ("sft", {"phase": "Pending", "lineage": {"parentRef": {"name": "first"}}}),
            ("first", {"lineage": {"parentRef": {"name": "sft"}}}),
        ],
        "WaitingForParent",
        "it is Pending",
    ),
    (
        "a way back that a complete job has already left behind",
        CHILD,
        [("sft", {"phase": "Succeeded", "lineage": {"parentRef": {"name": "one"}}})],
        None,
        "",
    ),
    ("a reward model that is none", SCORED, [("scorer", {"phase": "Training"})], "InvalidSpec", "objective is Chat"),
    (
        "a reward model that trains",
        SCORED,
        [("scorer", REWARD | {"phase": "Training"})],
        "WaitingForParent",
        "Training",
    ),
    ("a complete reward model", SCORED, [("scorer", REWARD | {"phase": "Succeeded"})], None, ""),
    (
        "two that are both missing",
        SCORED | CHILD,
        [],
        "WaitingForParent",
        "FineTuneJob scorer (rlhf.rewardModel.jobRef) does not exist in namespace team",
    ),
    (
        "a failed one, which is worse than one that runs",
        SCORED | CHILD,
        [("sft", {"phase": "Training"}), ("scorer", REWARD | {"phase": "Failed"})],
        "ParentFailed",
        "rlhf.rewardModel.jobRef scorer has failed",
    ),
    (
        "an adapter of a parent that asks for full tuning",
        CONTINUING,
        [("sft", {"phase": "Training", "tuning": {"method": "Full"}})],
        "InvalidSpec",
        "publishes no adapter: remove tuning.initialAdapter",
    ),
    (
        "an adapter of a parent whose method turned out to be full tuning",
        CONTINUING,
        [("sft", {"phase": "Training", "method": "Full"})],
        "InvalidSpec",
        "sft trains every weight",
    ),
    (
        "an adapter of a complete parent whose long report left the adapter out",
        CONTINUING,
        [("sft", {"phase": "Succeeded", "method": "QLoRA", "adapter": ""})],
        None,
        "",
    ),
    ("an adapter of a complete parent", CONTINUING, [("sft", {"phase": "Succeeded", "method": "QLoRA"})], None, ""),
]


@pytest.mark.parametrize(
    ("spec", "others", "reason", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_job_needs(job: Any, spec: Any, others: Any, reason: str | None, words: str) -> None:
    relatives = {name: job(name, **fields) for name, fields in others}
    found = parents.find_obstacle(job("one", **spec), relatives)
    assert (found and found.reason.value) == reason
    assert words in (found.detail if found else "")


def test_a_waiting_job_creates_nothing_and_names_what_it_waits_for(scene: Any, job: Any) -> None:
    one = scene(**CHILD)
    one.extra["relatives"] = {"sft": job("sft", "Training")}
    one.settle()
    assert one.children == {}
    assert (one.status["phase"], one.status["reason"]) == ("Pending", "WaitingForParent")
    assert one.status["message"] == "lineage.parentRef sft is not complete yet: it is Training."
    assert (one.condition("Accepted")["status"], one.condition("Ready")["status"]) == ("Unknown", "Unknown")
    assert one.condition("Stalled")["status"] == "False"


def test_parents_are_pinned_in_a_separate_write_before_anything_is_created(scene: Any, job: Any) -> None:
    one = scene(**CHILD)
    one.extra["relatives"] = {"sft": job("sft", "Succeeded")}
    first = one.look()
    assert (first.create, first.requeue_after) == (None, 0)
    assert first.status.lineage is not None
    assert first.status.lineage.parent is not None
    assert first.status.lineage.parent.model_dump(by_alias=True) == {
        "name": "sft",
        "uid": "sft-uid",
        "objective": "Chat",
        "outputURI": "s3://bucket/sft",
        "manifestSHA256": DIGEST,
    }
    one.object["status"] = first.status.to_wire()
    assert one.look().create is not None


def test_the_pods_get_what_was_pinned_whatever_happens_to_the_parents(scene: Any, job: Any) -> None:
    one = scene(**SCORED | CHILD)
    one.extra["relatives"] = {"sft": job("sft", "Succeeded"), "scorer": job("scorer", "Succeeded", **REWARD)}
    one.settle()
    one.extra["relatives"] = {}
    one.to_training()
    assert list(one.children) == ["one-preflight", "one-1"]
    for attempt in (0, 1):
        config = build_config(one.job, Settings(trainer_image="x/y:1"), attempt)
        assert config.parent is not None
        assert config.reward_job is not None
        assert (config.parent.uid, config.parent.output_uri) == ("sft-uid", "s3://bucket/sft")
        assert (config.reward_job.name, config.reward_job.objective) == ("scorer", "RewardModel")
    assert parents.open_needs(one.job) == []


def test_a_report_does_not_replace_a_pinned_parent(scene: Any, job: Any) -> None:
    one = scene(**CHILD)
    one.extra["relatives"] = {"sft": job("sft", "Succeeded")}
    one.settle()
    forged = {"name": "other", "uid": "u", "objective": "Chat", "outputURI": "s3://b/x", "manifestSHA256": "0" * 64}
    lineage = {"parent": forged, "rewardJob": forged, "baseModelRevision": "c0ffee", "initialAdapterSHA256": DIGEST}
    preflight = one.pod("one-preflight")
    one.end(preflight, 0, one.report("Validated", lineage=lineage))
    one.complete("one-preflight")
    one.settle()
    kept = one.status["lineage"]
    assert (kept["parent"]["uid"], "rewardJob" in kept) == ("sft-uid", False)
    assert (kept["baseModelRevision"], kept["initialAdapterSHA256"]) == ("c0ffee", DIGEST)


def test_a_job_without_parents_takes_none_from_a_report(scene: Any) -> None:
    one = scene()
    one.settle()
    forged = {"name": "other", "uid": "u", "objective": "Chat", "outputURI": "s3://b/x", "manifestSHA256": "0" * 64}
    one.end(one.pod("one-preflight"), 0, one.report("Validated", lineage={"parent": forged}))
    one.complete("one-preflight")
    one.settle()
    assert "parent" not in one.status["lineage"]
    assert Report.model_validate_json(one.report("Validated", lineage={"parent": forged})).lineage is not None


def test_waiting_is_an_event_once_however_often_the_parent_changes(scene: Any, job: Any) -> None:
    one, posted = scene(**CHILD), []
    for phase in ("", "Preflight", "Training", "Failed", "Training", "Succeeded"):
        before = FineTuneJobStatus.model_validate(one.status)
        one.extra["relatives"] = {"sft": job("sft", phase)}
        one.object["status"] = one.look().status.to_wire()
        posted += [(event.reason.value, event.is_warning) for event in derive_events(before, one.job.status)]
    assert posted == [
        ("WaitingForParent", False),
        ("WaitingForParent", True),
        ("WaitingForParent", False),
        ("Accepted", False),
    ]


def test_a_cycle_ends_when_one_of_its_jobs_is_deleted(scene: Any, job: Any) -> None:
    one = scene(**CHILD)
    one.extra["relatives"] = {"sft": job("sft", lineage={"parentRef": {"name": "one"}})}
    one.settle()
    assert (one.status["reason"], one.condition("Failed")["status"]) == ("InvalidSpec", "False")
    one.extra["relatives"] = {"sft": None}
    one.settle()
    assert one.status["reason"] == "WaitingForParent"


def test_a_forbidden_spec_is_reported_before_a_missing_parent(scene: Any) -> None:
    one = scene(**CHILD, trainer={"image": "evil.example/x"})
    one.settle()
    assert one.status["reason"] == "Forbidden"
