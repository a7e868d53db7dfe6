"""The chart's dashboards by the schema that Grafana publishes for them: its Foundation SDK reads them strictly."""

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import dashboards
import pytest

pytestmark = pytest.mark.nightly

# Grafana adds the defaults of a panel's type to its options, and the selected value to a variable.
FILLED_IN = re.compile(r"\.(options(\.\w+)+|current\.(text|value)): required field is missing from input$")

Check = Callable[[Any], list[str]]


@pytest.fixture(scope="module")
def check(program: Callable[[str], str]) -> Check:
    """What differs from the schema."""
    command = program("dashboards")

    def faults(dashboard: Any) -> list[str]:
        done = subprocess.run([command], input=json.dumps(dashboard), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return [line for line in lines if not FILLED_IN.search(line)]

    return faults


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_a_dashboard_has_the_fields_of_grafanas_schema_and_no_others(name: str, check: Check) -> None:
    assert check(dashboards.load(name)) == []


def stat() -> dict[str, Any]:
    """A dashboard with one panel, to be spoilt."""
    dashboard = dashboards.load("fleet")
    panel = next(panel for panel in dashboards.panels(dashboard) if panel["type"] == "stat")
    return {**dashboard, "panels": [panel]}


@pytest.mark.parametrize(
    ("place", "field", "value", "fault"),
    [
        ((), "titel", "x", "unexpected field 'titel'"),
        (("panels", 0), "titel", "x", "unexpected field 'titel'"),
        (("panels", 0, "options"), "graphMod", "area", "unexpected field 'graphMod'"),
        (("panels", 0, "targets", 0), "express", "up", "unexpected field 'express'"),
        (("panels", 0, "fieldConfig", "defaults"), "units", "s", "unexpected field 'units'"),
        (("templating", "list", 0), "lable", "x", "unexpected field 'lable'"),
        (("panels", 0), "type", "timesseries", "no schema of type timesseries is read"),
        (("panels", 0, "gridPos"), "w", "3", "cannot unmarshal string into Go value"),
    ],
)
def test_a_misspelt_field_is_found(
    place: tuple[str | int, ...], field: str, value: str, fault: str, check: Check
) -> None:
    spoilt: Any = stat()
    inner = spoilt
    for step in place:
        inner = inner[step]
    inner[field] = value
    (found,) = check(spoilt)
    assert fault in found
