"""checkov finds no weak point in the chart, apart from those that `checkov.yaml` gives the reason for."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from chart import ROOT, render

pytestmark = pytest.mark.nightly

CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "checkov"
CONFIG = Path(__file__).parent / "checkov.yaml"


def test_the_chart_has_no_weak_point_without_a_reason_and_no_reason_without_a_weak_point(
    helm: str, tmp_path: Path
) -> None:
    assert CHECKOV.exists(), "run `make checkov`"
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    reasons = settings.pop("skip-check")
    config = tmp_path / "all.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    file = tmp_path / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(render(helm)), encoding="utf-8")
    command = [str(CHECKOV), "--file", str(file), "--output", "json", "--config-file", str(config)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert sorted(one["check_id"] for one in found["results"]["failed_checks"]) == sorted(reasons)
    assert found["summary"]["passed"] > 80
    assert found["summary"]["parsing_errors"] == 0
