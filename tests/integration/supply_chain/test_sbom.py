"""`make sbom` names every package of an image, with the hashes that its build asks for."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[3]
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def boms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bills of material by image."""
    folder = tmp_path_factory.mktemp("sbom")
    subprocess.run(["make", "-s", "-C", str(ROOT), "sbom", f"SBOM_DIR={folder}"], check=True, capture_output=True)
    return {path.name.partition(".")[0]: json.loads(path.read_text(encoding="utf-8")) for path in folder.iterdir()}


def pins(part: str) -> set[tuple[str, str]]:
    return set(PIN.findall((ROOT / "requirements" / f"{part}.txt").read_text(encoding="utf-8")))


@pytest.mark.parametrize("part", ["operator", "preflight", "trainer"])
def test_a_bill_names_each_pinned_package_with_its_hashes(boms: dict[str, Any], part: str) -> None:
    bom = boms[part]
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "finetune-operator")
    found = {(one["name"], one["version"]): one for one in bom["components"]}
    assert set(found) == pins(part)
    for (name, version), component in found.items():
        assert component["purl"].startswith(f"pkg:pypi/{name}@{version}"), component["purl"]
        (distribution,) = [one for one in component["externalReferences"] if one["type"] == "distribution"]
        assert all(one["alg"] == "SHA-256" for one in distribution["hashes"])
        assert distribution["hashes"]


def test_the_operators_bill_has_nothing_that_trains(boms: dict[str, Any]) -> None:
    names = {one["name"] for one in boms["operator"]["components"]}
    assert names & {"torch", "transformers", "boto3", "peft"} == set()
    assert {"kopf", "kubernetes"} <= names
