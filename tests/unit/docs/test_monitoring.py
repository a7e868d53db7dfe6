"""docs/monitoring.md, the dashboards and the alerts name the same metrics, and all of them."""

import re
from pathlib import Path
from typing import Any

import dashboards
import pytest
from prometheus_client.core import Metric
from scraped import read_scrape

from finetune_api.evaluation import Verdict
from finetune_api.names import Phase
from finetune_operator.metrics.registry import Metrics
from finetune_trainer.monitoring.metrics import GAUGES, TrainerMetrics

ROOT = Path(__file__).parents[3]
MONITORING = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
SUFFIX = {"counter": "_total", "info": "_info"}
MEANINGS: dict[str, dict[str, str]] = {
    "phase": {
        "Failed": "red",
        "Succeeded": "green",
        "Training": "blue",
        "Evaluating": "dark-blue",
        "Merging": "light-blue",
        "Publishing": "super-light-blue",
        "Queued": "yellow",
        "Pending": "super-light-yellow",
        "Preflight": "light-yellow",
        "Starting": "dark-yellow",
        "Suspended": "purple",
    },
    "verdict": {"Worse": "red", "NoMeasurableDifference": "yellow", "NotEvaluated": "orange", "Better": "green"},
    "result": {
        "bug": "red",
        "failed": "red",
        "error": "orange",
        "conflict": "yellow",
        "done": "green",
        "answered": "green",
    },
}
"""The colour of each state, by label: red is failed or worse, yellow waits, blue runs, green has succeeded."""
FIGURES = {
    "Failed": "red", "Worse or gated": "red", "Waiting": "yellow", "Longest wait": "red", "Training": "blue",
    "GPUs held": "blue", "GPU time": "blue", "Succeeded": "green",
}  # fmt: skip
"""The colour of each figure once it is not 0."""
FROM_STATUS = re.compile(r"finetune_job_\w+_total")
"""Counters from the status: they do not restart with the process, and may be shown without `rate`."""
UNITS = {"short", "h", "percentunit", "percent", "s", "bytes", "mbytes", "Bps", "ops", "reqps", "sci", "watt"}


def exposed() -> dict[str, str]:
    """Return name and help of every metric of this project."""
    trainer = TrainerMetrics()
    trainer.update({}, dict.fromkeys(GAUGES, 1.0))
    families: list[Metric] = [*read_scrape(Metrics()), *trainer._registry.collect()]
    return {
        f"{family.name}{SUFFIX.get(family.type, '')}": family.documentation
        for family in families
        if family.name.startswith("finetune_")
    }


def test_the_table_has_every_metric_with_its_help_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `(finetune_\w+)` \|[^|]*\| (.*) \|$", MONITORING, flags=re.MULTILINE))
    assert {name: text.rstrip(".") for name, text in rows.items()} == {
        name: text.rstrip(".") for name, text in exposed().items()
    }


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_queries_use_metrics_that_exist(name: str) -> None:
    known = exposed().keys()
    for _, text in dashboards.queries(dashboards.load(name)):
        used = {re.sub(r"_(bucket|sum|count)$", "", one) for one in re.findall(r"finetune_[a-z_]+", text)}
        assert used <= known, text
        assert used or re.search(r"process_\w+", text), text


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_a_dashboard_keeps_the_rules_of_grafanas_linter(name: str) -> None:
    """Apply dashboard-linter's rules, which are not available as a Python module; each fault is named."""
    assert [*faults(dashboards.load(name))] == []


def faults(dashboard: dict[str, Any]) -> list[str]:
    found = []
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    if variables["datasource"]["query"] != "prometheus":
        found.append("the data source is not templated")
    if dashboard["editable"] or not dashboard["uid"].startswith("finetune-"):
        found.append("it can be edited, or its uid is not stable")
    found += [
        f"variable {one['name']} has no label, or is not reloaded with the time range"
        for one in variables.values()
        if not one["label"] or (one["type"] == "query" and one["refresh"] != 2)
    ]
    if variables["job"]["allValue"] != ".+" or not variables["job"]["multi"]:
        found.append("variable job cannot be all")
    for panel in dashboards.panels(dashboard):
        found += [f"{panel['title']}: {fault}" for fault in faults_of(panel)]
    ids = [panel["id"] for panel in dashboards.panels(dashboard)]
    return found + ([] if len(ids) == len(set(ids)) else ["two panels have one id"])


def faults_of(panel: dict[str, Any]) -> list[str]:
    found = []
    if not panel["title"] or not panel["description"].endswith("."):
        found.append("no title, or no sentence that describes it")
    if panel["fieldConfig"]["defaults"]["unit"] not in UNITS:
        found.append("no unit")
    if not panel["targets"]:
        found.append("no query")
    found += faults_of_colours(panel)
    templated = {"type": "prometheus", "uid": "${datasource}"}
    if any(one["datasource"] != templated for one in (panel, *panel["targets"])):
        found.append("a data source that is not templated")
    for target in panel["targets"]:
        found += faults_of_query(target["expr"])
    return found


def faults_of_colours(panel: dict[str, Any]) -> list[str]:
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    if not steps or steps[0]["value"] is not None:
        return ["no thresholds"]
    mode = defaults.get("color", {}).get("mode")
    if mode not in {"fixed", "thresholds", "shades"}:
        return ["colours that have no meaning"]
    legends = [target["legendFormat"] for target in panel["targets"]]
    labels = ("phase", "verdict", *(["result"] if "{{result}}" in legends else []))
    known = {name: colour for label in labels for name, colour in MEANINGS[label].items()}
    found = [
        f"{name} is {colour}, not {known[name]}"
        for name, colour in overrides(panel).items()
        if known.get(name, colour) != colour
    ]
    for label in ("phase", "verdict"):
        if any(legend.endswith(f"{{{{{label}}}}}") for legend in legends):
            found += [f"{name} has no colour of its own" for name in MEANINGS[label].keys() - overrides(panel).keys()]
    return found


def overrides(panel: dict[str, Any]) -> dict[str, str]:
    """Return the fixed colours by the name of the series, or by the end of it."""
    return {
        override["matcher"]["options"].strip("/$").removeprefix(": "): one["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == "color" and "fixedColor" in one["value"]
    }


def faults_of_query(expression: str) -> list[str]:
    found = []
    if set(re.findall(r"rate\([^[]*\[([^]]*)\]", expression)) - {"$__rate_interval"}:
        found.append(f"a rate over a fixed time: {expression}")
    for name, matchers in re.findall(r"((?:finetune|process)_\w+)\{([^}]*)\}", expression):
        if 'job=~"$job"' not in matchers:
            found.append(f"{name} of every scrape job")
        is_counter = name.endswith(("_total", "_bucket", "_sum", "_count")) and not FROM_STATUS.fullmatch(name)
        is_counted = re.search(rf"(rate|increase)\({name}|group by \([^)]*\) \({name}", expression)
        if is_counter and not is_counted:
            found.append(f"a counter that is not aggregated: {name}")
    if re.search(r"(finetune|process)_\w+(?![\w{])", re.sub(r"\{[^}]*\}", "{}", expression)):
        found.append(f"a metric without any matcher: {expression}")
    return found


def test_every_phase_has_a_meaning_and_the_first_figures_have_it_too() -> None:
    assert MEANINGS["phase"].keys() == set(Phase)
    assert MEANINGS["verdict"].keys() == set(Verdict)
    shown = {panel["title"]: panel["fieldConfig"]["defaults"] for panel in dashboards.panels(dashboards.load("fleet"))}
    colours = {title: shown[title]["thresholds"]["steps"][-1]["color"] for title in FIGURES}
    assert colours == FIGURES


def test_the_fleet_begins_with_what_needs_attention() -> None:
    titles = [panel["title"] for panel in dashboards.panels(dashboards.load("fleet"))]
    assert titles[:2] == ["Failed", "Worse or gated"]
    assert titles.index("Failed jobs") < titles.index("Waiting jobs") < titles.index("Jobs by phase")
    for panel, expression in dashboards.queries(dashboards.load("fleet")):
        if panel["type"] == "table" or "worst" in panel["title"]:
            assert panel["targets"][0]["instant"], f"{panel['title']}: Prometheus sorts only instant queries"
        assert "worst" not in panel["title"] or expression.startswith("sort_desc(")


def test_dashboards_link_to_each_other() -> None:
    all_of_them = [dashboards.load(name) for name in dashboards.NAMES]
    assert [one["uid"] for one in all_of_them] == ["finetune-fleet", "finetune-job", "finetune-operator"]
    for one in all_of_them:
        (link,) = one["links"]
        assert all(set(link["tags"]) <= set(other["tags"]) for other in all_of_them)
    table = next(panel for panel in dashboards.panels(all_of_them[0]) if panel["type"] == "table")
    assert "/d/finetune-job?" in str(table["fieldConfig"]["overrides"])


def test_every_alert_has_a_runbook_with_what_it_means_and_what_to_do() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS, flags=re.MULTILINE | re.DOTALL))
    alerts = {rule["alert"]: rule for rule in dashboards.rules()}
    assert set(sections) == set(alerts)
    for name, text in sections.items():
        assert "**What it means.**" in text
        assert "**What to do.**" in text
        assert alerts[name]["annotations"]["runbook_url"] == f"RUNBOOK_URL#{name.lower()}"
        assert name in MONITORING


def test_alerts_have_sentences_and_a_severity() -> None:
    for rule in dashboards.rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["description"].endswith(".")
        used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"finetune_[a-z_]+", rule["expr"])}
        assert used <= exposed().keys()
