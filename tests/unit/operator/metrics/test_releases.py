"""The series of releases, as the watch shows and removes them."""

from typing import TYPE_CHECKING, Any, cast

from scraped import read_scrape

from finetune_operator.metrics.registry import Metrics
from finetune_operator.release.watch import ReleaseController
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from finetune_operator.cluster import Cluster

TARGET = {"files": {"uri": "s3://bucket/alias"}}


class Watched:
    """A controller of releases that nothing works on."""

    def __init__(self) -> None:
        settings, self.metrics = Settings(trainer_image="registry.example/trainer:1"), Metrics()
        self.controller = ReleaseController(cast("Cluster", None), settings, self.metrics)  # asks nothing
        self._version = 0

    def release(self, name: str, reason: str = "", **conditions: str) -> dict[str, Any]:
        self._version += 1
        found = [
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for kind, value in conditions.items()
        ]
        meta = {"namespace": "team", "name": name, "uid": f"uid-{name}", "generation": 1}
        status = {"observedGeneration": 1, "reason": reason, "conditions": found} if reason else {}
        spec = {"jobRef": {"name": "one"}, "target": TARGET}
        return {"metadata": meta | {"resourceVersion": str(self._version)}, "spec": spec, "status": status}

    def series(self, metric: str) -> dict[tuple[str, str], float]:
        (family,) = [one for one in read_scrape(self.metrics) if one.name == metric]
        return {(one.labels["name"], one.labels["reason"]): one.value for one in family.samples}


def test_a_release_is_shown_from_its_creation_to_its_deletion() -> None:
    watched = Watched()
    watched.controller.put("finetunereleases", watched.release("bot"))
    assert watched.series("finetune_release_ready") == {("bot", "Unseen"): 0.0}
    answers = watched.release("bot", "Released", Ready="True", Stalled="False")
    watched.controller.put("finetunereleases", answers)
    assert watched.series("finetune_release_ready") == {("bot", "Released"): 1.0}
    watched.controller.put("finetunereleases", watched.release("bot", "Held", Ready="False", Stalled="True"))
    assert watched.series("finetune_release_ready") == {("bot", "Held"): 0.0}
    assert watched.series("finetune_release_stalled") == {("bot", "Held"): 1.0}
    watched.controller.remove("finetunereleases", watched.release("bot"))
    assert watched.series("finetune_release_stalled") == {}


def test_what_a_complete_list_does_not_show_is_removed() -> None:
    watched = Watched()
    kept, gone = watched.release("kept"), watched.release("gone")
    for one in (kept, gone):
        watched.controller.put("finetunereleases", one)
    for is_complete, left in ((False, {"kept", "gone"}), (True, {"kept"})):
        listing = watched.controller.begin_listing("finetunereleases", None)
        watched.controller.put("finetunereleases", kept)
        watched.controller.end_listing("finetunereleases", listing, is_complete=is_complete)
        assert {name for name, _ in watched.series("finetune_release_ready")} == left


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    watched = Watched()
    older, newer = watched.release("bot"), watched.release("bot", "Released", Ready="True")
    for one in (newer, older):
        watched.controller.put("finetunereleases", one)
    assert watched.series("finetune_release_ready") == {("bot", "Released"): 1.0}
