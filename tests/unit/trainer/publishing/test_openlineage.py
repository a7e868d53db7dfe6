"""`openlineage.jsonl`, built again with the classes of OpenLineage's own client, which refuse what its schema does not
know."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import event_v2, facet_v2
from openlineage.client.generated import tags_run

from finetune_api.handoff import Outcome, Report
from finetune_api.status import PublishedJob
from finetune_trainer.publishing.lineage import build_lineage, combined_sha256
from finetune_trainer.publishing.openlineage import build_events, write_lineage
from finetune_trainer.storage.protocol import sha256_file

FACETS = {
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "tags": tags_run.TagsRunFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "dataSource": facet_v2.datasource_dataset.DatasourceDatasetFacet,
    "dataQualityMetrics": facet_v2.data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}
Event = dict[str, Any]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def events(job_config: Any, result: Path) -> list[Event]:
    return told(job_config, result, Outcome.PUBLISHED)


def told(job_config: Any, result: Path, outcome: Outcome) -> list[Event]:
    parent = PublishedJob(
        name="sft", uid="uid-0", objective="Chat", output_uri="s3://bucket/sft", manifest_sha256="e" * 64
    )
    config = job_config({"model": {"uri": "hf://acme/base", "revision": "a" * 40}})
    config = config.model_copy(update={"parent": parent, "attempt": 2})
    report = Report(
        outcome=outcome,
        reason=outcome.value,
        message="",
        job_uid="uid-1",
        config_sha256="c",
        metrics={"eval_loss": 1.5, "best_step": 6},
        lineage={"parent": parent},
        last_step=9,
    )
    lineage = build_lineage(
        config,
        report,
        model_files={"model.safetensors": "a" * 64},
        template_sha256="b" * 64,
        dataset={"sources": [{"uri": "s3://bucket/data/rows.jsonl", "sha256": "c" * 64, "size": 7}]},
        device="CPU",
        seconds=60,
    )
    write_lineage(lineage, result)
    assert json.loads((result / "lineage.json").read_text()) == lineage
    return [json.loads(line) for line in (result / "openlineage.jsonl").read_text().splitlines()]


def facets_of(event: Event) -> list[tuple[str, Event]]:
    holders = [event["run"]["facets"], event["job"]["facets"]]
    for dataset in [*event["inputs"], *event["outputs"]]:
        holders += [dataset.get(name, {}) for name in ("facets", "inputFacets", "outputFacets")]
    return [pair for holder in holders for pair in holder.items()]


def test_the_run_starts_and_completes_once_under_one_id(events: list[Event]) -> None:
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"]
    assert events[0]["eventTime"] < events[1]["eventTime"]
    assert events[0]["run"] == events[1]["run"]


def test_a_result_that_meets_no_gate_is_a_failed_run_without_an_output(job_config: Any, result: Path) -> None:
    start, end = told(job_config, result, Outcome.GATE_NOT_MET)
    assert (start["eventType"], end["eventType"], end["outputs"]) == ("START", "FAIL", [])
    assert "modelRegistry" not in json.loads((result / "lineage.json").read_text("utf-8"))


def test_every_event_is_one_that_openlineages_client_would_send(events: list[Event]) -> None:
    for event in events:
        built = event_v2.RunEvent(
            eventTime=event["eventTime"],
            producer=event["producer"],
            eventType=event_v2.RunState[event["eventType"]],
            run=event_v2.Run(**event["run"]),
            job=event_v2.Job(**event["job"]),
            inputs=[event_v2.InputDataset(**one) for one in event["inputs"]],
            outputs=[event_v2.OutputDataset(**one) for one in event["outputs"]],
        )
        assert event["schemaURL"] == built.schemaURL
        assert event.keys() <= {"eventTime", "producer", "schemaURL", "run", "job", "eventType", "inputs", "outputs"}
        uuid.UUID(event["run"]["runId"])


def test_every_facet_is_one_of_openlineages_with_its_schema(events: list[Event]) -> None:
    found = [pair for event in events for pair in facets_of(event)]
    assert {name for name, _ in found} == set(FACETS)
    for name, facet in found:
        fields = {key: value for key, value in facet.items() if not key.startswith("_")}
        built = FACETS[name](**fields, producer=facet["_producer"])
        assert facet["_schemaURL"] == built._schemaURL
        assert facet["_producer"] == built._producer


def by_name(datasets: list[Event]) -> dict[tuple[str, str], str]:
    return {(one["namespace"], one["name"]): one["facets"]["version"]["datasetVersion"] for one in datasets}


def test_inputs_are_the_rows_the_base_and_the_parent_by_content(events: list[Event], result: Path) -> None:
    assert by_name(events[1]["inputs"]) == {
        ("s3://bucket", "data/rows.jsonl"): "c" * 64,
        ("https://huggingface.co", "acme/base"): "a" * 40,
        ("s3://bucket", "sft"): "e" * 64,
    }
    weights = sha256_file(result / "adapter" / "adapter_model.safetensors")
    assert by_name(events[1]["outputs"]) == {("s3://bucket", "out"): weights}
    assert events[0]["outputs"] == []


def test_the_chosen_step_and_the_figures_are_tags_of_the_run(events: list[Event]) -> None:
    tags = {tag["key"]: tag["value"] for tag in events[1]["run"]["facets"]["tags"]["tags"]}
    assert (tags["chosenStep"], tags["evalLoss"], tags["jobUID"]) == ("6", "1.5", "uid-1")


LINEAGE: Event = {
    "job": {"namespace": "team", "name": "job", "uid": "u", "attempt": 1, "configSHA256": "c"},
    "startedTime": "2026-01-01T00:00:00.000Z",
    "completedTime": "2026-01-01T00:00:01.000Z",
    "baseModel": {"uri": "s3://bucket/model/", "revision": None, "sha256": "b"},
    "dataset": {"sources": []},
    "trainer": {"seed": 0},
    "metrics": {},
    "chosenStep": None,
    "outputURI": "s3://bucket/out",
    "outcome": "Published",
}


def inputs(**entries: Any) -> dict[tuple[str, str], str]:
    return by_name(build_events(LINEAGE | entries, Path("/nonexistent"))[1]["inputs"])


def test_a_base_without_a_commit_has_its_digest_for_a_version() -> None:
    assert inputs() == {("s3://bucket", "model"): "b"}


def test_the_reward_job_is_an_input() -> None:
    judge = {"outputURI": "s3://bucket/judge", "manifestSHA256": "e"}
    assert inputs(rewardJob=judge) == {("s3://bucket", "model"): "b", ("s3://bucket", "judge"): "e"}


def test_an_adapter_is_an_input_of_its_own_unless_it_is_the_parents() -> None:
    adapter = {"uri": "hf://acme/adapter@main", "sha256": "f"}
    parent = {"outputURI": "s3://bucket/sft", "manifestSHA256": "e"}
    assert inputs(initialAdapter=adapter) == {
        ("s3://bucket", "model"): "b",
        ("https://huggingface.co", "acme/adapter"): "f",
    }
    both = inputs(initialAdapter=adapter | {"uri": "s3://bucket/sft/adapter"}, parent=parent)
    assert both == {("s3://bucket", "model"): "b", ("s3://bucket", "sft"): "e"}


def test_a_dataset_names_where_its_bytes_are(events: list[Event]) -> None:
    rows, base, _ = events[0]["inputs"]
    source = rows["facets"]["dataSource"]
    assert (source["name"], source["uri"]) == ("bucket", "s3://bucket/data/rows.jsonl")
    assert rows["inputFacets"]["dataQualityMetrics"]["bytes"] == 7
    assert base["facets"]["dataSource"]["name"] == "acme"


def test_an_unknown_step_has_no_tag_and_a_seed_of_zero_has_one() -> None:
    tags = build_events(LINEAGE, Path("/nonexistent"))[0]["run"]["facets"]["tags"]["tags"]
    assert {tag["key"]: tag["value"] for tag in tags} == {"jobUID": "u", "configSHA256": "c", "seed": "0"}


def output(folder: Path) -> Event:
    (found,) = build_events(LINEAGE, folder)[1]["outputs"]
    return dict(found)


def test_the_version_of_the_output_is_the_digest_of_its_weights(tmp_path: Path) -> None:
    assert by_name([output(tmp_path)]) == {("s3://bucket", "out"): "c"}
    (tmp_path / "merged").mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / "merged" / name).write_text(name)
    digests = {path.name: sha256_file(path) for path in (tmp_path / "merged").iterdir()}
    assert by_name([output(tmp_path)]) == {("s3://bucket", "out"): combined_sha256(digests)}


def test_the_output_counts_its_files_and_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("a", "b", "adapter/c"):
        (tmp_path / name).write_text("1234")
    statistics = output(tmp_path)["outputFacets"]["outputStatistics"]
    assert (statistics["size"], statistics["fileCount"]) == (12, 3)


def test_the_lineage_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_lineage(LINEAGE, tmp_path)
    text = (tmp_path / "lineage.json").read_text()
    assert text.startswith('{\n  "job": {\n')
    assert text.endswith("\n}\n")
