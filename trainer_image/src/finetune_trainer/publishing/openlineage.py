"""The lineage as OpenLineage events, for catalogues such as Marquez or DataHub: `openlineage.jsonl`, one event a line.

Only a published result has the file, so its run has always started and completed; the end of any other run is in the
status of the FineTuneJob.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_api import __version__, names
from finetune_api.handoff import Artifact, Outcome
from finetune_api.inputs.claims import is_claim_uri
from finetune_trainer.publishing.lineage import combined_sha256
from finetune_trainer.storage.hub.uris import is_hub_uri, strip_commit
from finetune_trainer.storage.protocol import sha256_file

PRODUCER = f"https://{names.GROUP}/finetune-trainer/{__version__}"
SPEC = "https://openlineage.io/spec"
FACETS = {
    "JobTypeJobFacet": "2-0-4",
    "ProcessingEngineRunFacet": "1-1-1",
    "TagsRunFacet": "1-0-0",
    "DatasetVersionDatasetFacet": "1-0-1",
    "DatasourceDatasetFacet": "1-0-1",
    "DataQualityMetricsInputDatasetFacet": "1-0-3",
    "OutputStatisticsOutputDatasetFacet": "1-0-2",
}
"""The schema versions of the facets."""
HUB = "https://huggingface.co"


def write_lineage(lineage: Mapping[str, Any], result: Path) -> None:
    """Write both files to the result folder; the output's size counts the files that are in it before."""
    (result / Artifact.LINEAGE).write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(event) + "\n" for event in build_events(lineage, result))
    (result / Artifact.OPENLINEAGE).write_text(lines, encoding="utf-8")


def build_events(lineage: Mapping[str, Any], result: Path) -> list[dict[str, Any]]:
    """Return the start and end events of the run that published this lineage."""
    job = lineage["job"]
    event = {
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {
            "runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{names.GROUP}/{job['uid']}/{job['attempt']}")),
            "facets": _run_facets(lineage),
        },
        "job": {
            "namespace": job["namespace"],
            "name": job["name"],
            "facets": {
                "jobType": _facet("JobTypeJobFacet", processingType="BATCH", integration="FINETUNE", jobType=names.KIND)
            },
        },
        "inputs": list(_inputs(lineage)),
    }
    start = {"eventType": "START", "eventTime": lineage["startedTime"], **event, "outputs": []}
    is_met = lineage["outcome"] != Outcome.GATE_NOT_MET
    outputs = [_output(lineage, result)] if is_met else []  # other jobs must not build on it
    end = {"eventType": "COMPLETE" if is_met else "FAIL", "eventTime": lineage["completedTime"]}
    return [start, {**end, **event, "outputs": outputs}]


def _run_facets(lineage: Mapping[str, Any]) -> dict[str, Any]:
    tags = {
        "jobUID": lineage["job"]["uid"],
        "configSHA256": lineage["job"]["configSHA256"],
        "seed": lineage["trainer"]["seed"],
        "chosenStep": lineage["chosenStep"],
        **lineage["metrics"],
    }
    found = [
        {"key": key, "value": str(value), "source": "FINETUNE"} for key, value in tags.items() if value is not None
    ]
    return {
        "processing_engine": _facet("ProcessingEngineRunFacet", name="finetune-trainer", version=__version__),
        "tags": _facet("TagsRunFacet", tags=found),
    }


def _inputs(lineage: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows as they were read, the base, its teacher, and the results of other jobs."""
    within = lineage["job"]["namespace"]
    for source in lineage["dataset"]["sources"]:
        measured = _facet("DataQualityMetricsInputDatasetFacet", columnMetrics={}, bytes=source.get("size"))
        yield _dataset(source["uri"], source["sha256"], within) | {"inputFacets": {"dataQualityMetrics": measured}}
    base = lineage["baseModel"]
    for model in (base, *([lineage["teacher"]] if "teacher" in lineage else [])):
        yield _dataset(model["uri"], model["revision"] or model["sha256"], within)
    for name in ("parent", "rewardJob"):
        if name in lineage:
            yield _dataset(lineage[name]["outputURI"], lineage[name]["manifestSHA256"])
    if "initialAdapter" in lineage and "parent" not in lineage:
        yield _dataset(lineage["initialAdapter"]["uri"], lineage["initialAdapter"]["sha256"], within)


def _output(lineage: Mapping[str, Any], result: Path) -> dict[str, Any]:
    files = [path for path in result.rglob("*") if path.is_file()]
    found = _dataset(lineage["outputURI"], _weights_sha256(result) or lineage["job"]["configSHA256"])
    size = sum(path.stat().st_size for path in files)
    statistics = _facet("OutputStatisticsOutputDatasetFacet", size=size, fileCount=len(files))
    return found | {"outputFacets": {"outputStatistics": statistics}}


def _weights_sha256(result: Path) -> str | None:
    """Return the digest of the adapter's weights; for a full model, one over all shards."""
    for folder in (Artifact.ADAPTER, Artifact.MERGED):
        digests = {path.name: sha256_file(path) for path in (result / folder).glob("*.safetensors")}
        if digests:
            return next(iter(digests.values())) if len(digests) == 1 else combined_sha256(digests)
    return None


def _dataset(uri: str, version: str, within: str = "") -> dict[str, Any]:
    """Build a dataset by OpenLineage's naming: the bucket with its scheme and the key, or hub and repository.

    A claim has its name only within the namespace of Kubernetes.
    """
    plain = strip_commit(uri)
    address = urlsplit(plain)
    is_hub = is_hub_uri(uri)
    path = f"{address.netloc}{address.path}" if is_hub else address.path
    place = f"{within}/{address.netloc}" if is_claim_uri(uri) else address.netloc
    return {
        "namespace": HUB if is_hub else f"{address.scheme}://{place}",
        "name": path.strip("/"),
        "facets": {
            "version": _facet("DatasetVersionDatasetFacet", datasetVersion=version),
            "dataSource": _facet("DatasourceDatasetFacet", name=address.netloc, uri=plain),
        },
    }


def _facet(kind: str, **fields: object) -> dict[str, Any]:
    known = {name: value for name, value in fields.items() if value is not None}
    schema = f"{SPEC}/facets/{FACETS[kind]}/{kind}.json#/$defs/{kind}"
    return {"_producer": PRODUCER, "_schemaURL": schema, **known}
