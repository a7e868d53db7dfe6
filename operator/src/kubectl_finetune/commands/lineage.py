"""`lineage`: the origin of a result, down to the base model, from the statuses of the jobs."""

from collections.abc import Callable
from typing import Any

from rich.text import Text
from rich.tree import Tree

from finetune_api.status import PublishedJob
from finetune_api.text.printable import printable
from finetune_client.cluster.job import Job
from kubectl_finetune.display.table import STYLES

Find = Callable[[str], Job | None]
MAX_DEPTH = 50


def origin_record(job: Job, find: Find, depth: int = 0) -> dict[str, Any]:
    """Return the job and its ancestors, as far as they are still in the cluster."""
    lineage, artifacts = job.status.lineage, job.status.artifacts
    found: dict[str, Any] = {
        "name": job.name,
        "uid": job.uid,
        "objective": job.field("objective"),
        "phase": job.phase,
        "outputURI": (artifacts and artifacts.uri) or job.field("output.uri"),
        "manifestSHA256": artifacts and artifacts.manifest_sha256,
        "baseModelURI": (lineage and lineage.base_model_uri) or job.field("model.uri"),
        "teacherURI": job.field("distillation.teacher.uri"),
        "initialAdapterURI": job.field("tuning.initialAdapter.uri"),
    }
    if lineage:
        known = lineage.model_dump(by_alias=True, mode="json", exclude={"parent", "reward_job"})
        found |= {key: value for key, value in known.items() if value}
    for key, published, named in (
        ("parent", lineage and lineage.parent, job.field("lineage.parentRef.name")),
        ("rewardJob", lineage and lineage.reward_job, job.field("rlhf.rewardModel.jobRef.name")),
    ):
        if named:
            found[key] = _ancestor(str(named), published or None, find, depth)
    return {key: value for key, value in found.items() if value not in (None, "")}


def _ancestor(name: str, published: PublishedJob | None, find: Find, depth: int) -> dict[str, Any]:
    found = find(name) if depth < MAX_DEPTH else None
    recorded: dict[str, Any] = {"name": name}
    if published:
        recorded = published.model_dump(by_alias=True, mode="json")
    if found is None:
        return recorded | {"note": "no longer in the cluster" if published else "not in the cluster"}
    if published and found.uid != published.uid:
        return recorded | {"note": "another job of this name is in the cluster now"}
    return origin_record(found, find, depth + 1)


def tree(found: dict[str, Any]) -> Tree:
    """Return the record as a tree, with the job at the root and the base models at the leaves."""
    root = Tree(_job_line(found))
    _grow(root, found)
    return root


def _grow(branch: Tree, found: dict[str, Any]) -> None:
    for key, name in (("datasetSHA256", "rows"), ("manifestSHA256", "manifest"), ("trainerImage", "trainer")):
        if found.get(key):
            branch.add(Text(f"{name} {printable(str(found[key]))}", "dim"))
    for key, role in (("rewardJob", "reward model"), ("parent", "parent")):
        if key in found:
            below = branch.add(Text.assemble((f"{role}: ", "dim"), _job_line(found[key])))
            _grow(below, found[key])
    for key, role in (("teacher", "teacher"), ("initialAdapter", "initial adapter"), ("baseModel", "base model")):
        if found.get(f"{key}URI") and not (key == "baseModel" and "parent" in found):
            revision = found.get(f"{key}Revision")
            at = f"@{revision}" if revision else ""
            branch.add(Text.assemble((f"{role}: ", "dim"), printable(f"{found[f'{key}URI']}{at}")))


def _job_line(found: dict[str, Any]) -> Text:
    phase = str(found.get("phase", ""))
    text = Text.assemble(
        (printable(found["name"]), "bold"),
        printable(f" {found.get('objective') or ''} "),
        (phase, STYLES.get(phase, "")),
    )
    if found.get("outputURI"):
        text.append(f"  {printable(found['outputURI'])}")
    if found.get("note"):
        text.append(f"  ({found['note']})", "yellow")
    return text
