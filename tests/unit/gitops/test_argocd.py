"""The health checks for Argo CD, run in Lua on states that the operator writes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_statuses
import pytest
import release_statuses
import yaml
from lupa import lua51

ROOT = Path(__file__).parents[3]
FOLDERS = {
    ROOT / "helm" / "argocd" / "finetune.dev_FineTuneJob": job_statuses,
    ROOT / "helm" / "argocd" / "finetune.dev_FineTuneRelease": release_statuses,
}
FOLDER, RELEASES = FOLDERS
CASES = [
    (folder, case)
    for folder in FOLDERS
    for case in yaml.safe_load((folder / "health_test.yaml").read_text(encoding="utf-8"))["tests"]
]
STORIES = [(folder, story) for folder, statuses in FOLDERS.items() for story in statuses.STORIES]
AS_KSTATUS = {
    "Healthy": job_statuses.CURRENT,
    "Suspended": job_statuses.CURRENT,
    "Degraded": job_statuses.FAILED,
    "Progressing": job_statuses.IN_PROGRESS,
}


def script(folder: Path) -> str:
    return (folder / "health.lua").read_text(encoding="utf-8")


def health(obj: dict[str, Any], folder: Path = FOLDER) -> dict[str, str]:
    """Return what Argo CD shows: it runs the script in Lua 5.1 with the object as `obj`."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.globals()["obj"] = lua.table_from(obj, recursive=True)
    return dict(lua.execute(script(folder)))


@pytest.mark.parametrize(("folder", "case"), CASES, ids=lambda one: one.name if isinstance(one, Path) else None)
def test_each_state_has_the_health_of_the_table(folder: Path, case: dict[str, Any]) -> None:
    obj = yaml.safe_load((folder / case["inputPath"]).read_text(encoding="utf-8"))
    assert health(obj, folder) == case["healthStatus"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_state_of_the_test_data_is_in_the_table(folder: Path) -> None:
    data = list((folder / "testdata").iterdir())
    assert sorted(case["inputPath"] for where, case in CASES if where == folder) == sorted(
        f"testdata/{path.name}" for path in data
    )
    assert {path.stem for path in data} == {one.__name__ for one in FOLDERS[folder].STORIES}


@pytest.mark.parametrize(("folder", "story"), STORIES, ids=lambda one: getattr(one, "__name__", None) or one.name)
def test_the_test_data_is_what_the_operator_writes(folder: Path, story: Callable[[], dict[str, Any]]) -> None:
    """`make generate` writes it."""
    path = folder / "testdata" / f"{story.__name__}.yaml"
    assert path.read_text(encoding="utf-8") == FOLDERS[folder].text_of(story)


@pytest.mark.parametrize("story", release_statuses.STORIES, ids=lambda story: story.__name__)
def test_a_release_is_healthy_once_its_result_answers(story: Callable[[], dict[str, Any]]) -> None:
    assert health(story(), RELEASES)["status"] == release_statuses.STORIES[story]


@pytest.mark.parametrize("story", job_statuses.STORIES, ids=lambda story: story.__name__)
def test_argo_cd_agrees_with_kstatus(story: Callable[[], dict[str, Any]]) -> None:
    expected = job_statuses.STORIES[story].replace("Terminating", job_statuses.IN_PROGRESS)
    assert AS_KSTATUS[health(story())["status"]] == expected


@pytest.mark.parametrize("status", [None, {}, {"conditions": []}, {"observedGeneration": 1, "conditions": []}])
def test_a_job_without_conditions_is_in_progress(status: Any) -> None:
    job = {"metadata": {"generation": 1}} | ({} if status is None else {"status": status})
    assert health(job)["status"] == "Progressing"


def test_the_guide_shows_these_scripts() -> None:
    guide = (ROOT / "docs" / "gitops.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    (config,) = [one for one in blocks if one["kind"] == "ConfigMap"]
    ignored = yaml.safe_load(
        config["data"].pop("resource.customizations.ignoreResourceUpdates.finetune.dev_FineTuneJob")
    )
    assert config["data"] == {f"resource.customizations.health.{one.name}": script(one) for one in FOLDERS}
    assert ignored == {"jsonPointers": ["/status"]}
