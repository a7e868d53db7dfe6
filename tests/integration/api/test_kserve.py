"""KServe's own definitions accept the manifests that a report prints. They come from its Go module."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from finetune_trainer.report.serving import Place, kserve_adapter, kserve_llm_adapter, kserve_merged

pytestmark = pytest.mark.nightly

Kubectl = Callable[..., str]
PLACE = Place("support.bot", "s3://bucket/support-bot", "hf://owner/base", "a" * 40, "http://minio:9000")
MIRRORED = replace(PLACE, hub_endpoint="https://hub.example.org")
SERVICE = "serving.kserve.io_inferenceservices.yaml"
LLM_SERVICE = "llmisvc/serving.kserve.io_llminferenceservices.yaml"
MANIFESTS = {
    SERVICE: [kserve_adapter(PLACE, 24), kserve_merged(PLACE)],
    LLM_SERVICE: [kserve_llm_adapter(PLACE, 24), kserve_llm_adapter(MIRRORED, 24)],
}


def install(version: str, file: str, folder: Path, kubectl: Kubectl) -> None:
    """Install the definition of that release; skip the test if it cannot be had."""
    command = ["go", "mod", "download", "-json", f"github.com/kserve/kserve@{version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except FileNotFoundError:
        pytest.skip("NOT TESTED against KServe's definitions: there is no go program")
    if done.returncode:
        pytest.skip(f"NOT TESTED against KServe's definitions: {done.stdout}{done.stderr}")
    path = Path(json.loads(done.stdout)["Dir"]) / "config" / "crd" / "full" / file
    name = re.findall(r"^  name: (\S+)$", path.read_text(), re.MULTILINE)[0]
    kubectl("delete", "crd", name, "--ignore-not-found")
    kubectl("create", "-f", str(path))
    served = ("api-resources", "--api-group=serving.kserve.io", "-o", "name")
    wait_until(lambda: name in kubectl(*served).split(), f"{name} is served")


@pytest.mark.parametrize(("version", "file"), [("v0.17.0", SERVICE), ("v0.20.0", SERVICE), ("v0.20.0", LLM_SERVICE)])
def test_a_release_of_kserve_accepts_the_printed_manifests(
    version: str, file: str, tmp_path: Path, kubectl: Kubectl
) -> None:
    install(version, file, tmp_path, kubectl)
    apply = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    for manifest in MANIFESTS[file]:
        assert "support-bot serverside-applied" in kubectl(*apply, stdin=manifest)
        misspelt = re.sub(r"^( +)resources:", r"\1resource:", manifest, flags=re.MULTILINE)
        with pytest.raises(AssertionError, match=r"resource"):
            kubectl(*apply, stdin=misspelt)
