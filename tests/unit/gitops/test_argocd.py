"""The health check for Argo CD, run in Lua on states that the operator writes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_statuses
import pytest
import yaml
from lupa import lua51

FOLDER = Path(__file__).parents[3] / "helm" / "argocd" / "finetune.dev_FineTuneJob"
LUA = (FOLDER / "health.lua").read_text(encoding="utf-8")
CASES = yaml.safe_load((FOLDER / "health_test.yaml").read_text(encoding="utf-8"))["tests"]
AS_KSTATUS = {
    "Healthy": job_statuses.CURRENT,
    "Suspended": job_statuses.CURRENT,
    "Degraded": job_statuses.FAILED,
    "Progressing": job_statuses.IN_PROGRESS,
}


def health(job: dict[str, Any]) -> dict[str, str]:
    """Return what Argo CD shows: it runs the script in Lua 5.1 with the object as `obj`."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.globals()["obj"] = lua.table_from(job, recursive=True)
    return dict(lua.execute(LUA))


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case["inputPath"]).stem)
def test_each_state_has_the_health_of_the_table(case: dict[str, Any]) -> None:
    job = yaml.safe_load((FOLDER / case["inputPath"]).read_text(encoding="utf-8"))
    assert health(job) == case["healthStatus"]


def test_every_state_of_the_test_data_is_in_the_table() -> None:
    assert sorted(case["inputPath"] for case in CASES) == sorted(
        f"testdata/{path.name}" for path in (FOLDER / "testdata").iterdir()
    )
    assert {path.stem for path in (FOLDER / "testdata").iterdir()} == {one.__name__ for one in job_statuses.STORIES}


@pytest.mark.parametrize("story", job_statuses.STORIES, ids=lambda story: story.__name__)
def test_the_test_data_is_what_the_operator_writes(story: Callable[[], dict[str, Any]]) -> None:
    """`make generate` writes it."""
    path = FOLDER / "testdata" / f"{story.__name__}.yaml"
    assert path.read_text(encoding="utf-8") == job_statuses.text_of(story)


@pytest.mark.parametrize("story", job_statuses.STORIES, ids=lambda story: story.__name__)
def test_argo_cd_agrees_with_kstatus(story: Callable[[], dict[str, Any]]) -> None:
    expected = job_statuses.STORIES[story].replace("Terminating", job_statuses.IN_PROGRESS)
    assert AS_KSTATUS[health(story())["status"]] == expected


@pytest.mark.parametrize("status", [None, {}, {"conditions": []}, {"observedGeneration": 1, "conditions": []}])
def test_a_job_without_conditions_is_in_progress(status: Any) -> None:
    job = {"metadata": {"generation": 1}} | ({} if status is None else {"status": status})
    assert health(job)["status"] == "Progressing"


def test_the_guide_shows_this_script() -> None:
    guide = (FOLDER.parents[2] / "docs" / "gitops.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    (config,) = [one for one in blocks if one["kind"] == "ConfigMap"]
    kind = "finetune.dev_FineTuneJob"
    ignored = yaml.safe_load(config["data"].pop(f"resource.customizations.ignoreResourceUpdates.{kind}"))
    assert config["data"] == {f"resource.customizations.health.{kind}": LUA}
    assert ignored == {"jsonPointers": ["/status"]}
