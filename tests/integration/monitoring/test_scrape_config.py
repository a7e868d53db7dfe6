"""The scrape jobs of docs/monitoring.md are such as Prometheus takes, and find the labels that the pods have."""

import re
import subprocess
from pathlib import Path

import prometheus

from finetune_api import names

MONITORING = Path(__file__).parents[3] / "docs" / "monitoring.md"


def test_the_documented_scrape_jobs_are_a_configuration(tmp_path: Path) -> None:
    prometheus.install_missing()
    (block,) = re.findall(
        r"```yaml\n(scrape_configs:\n.*?)```", MONITORING.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (tmp_path / "prometheus.yml").write_text(block)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = {f"__meta_kubernetes_pod_label_{meta(name)}" for name in (names.LABEL_MANAGED_BY, names.LABEL_COMPONENT)}
    said |= {f"__meta_kubernetes_pod_label_{meta(names.LABEL_ATTEMPT)}"}
    said |= {f"__meta_kubernetes_pod_annotation_{meta(names.ANNOTATION_JOB_NAME)}"}
    assert {name for name in said if name not in block} == set()


def meta(name: str) -> str:
    return re.sub(r"\W", "_", name)
