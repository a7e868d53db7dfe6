"""The model card's metadata as the hub's own library reads it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from report_record import HOSTILE, make_run

from finetune_api.evaluate_mode import Mode
from finetune_api.handoff import Artifact
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import BaseFacts, Licence, RunRecord
from finetune_trainer.report.document import write_documents
from finetune_trainer.report.model_card import front_matter


def with_spec(run: RunRecord, **blocks: Any) -> RunRecord:
    spec = run.config.spec
    changed = spec.model_copy(
        update={name: getattr(spec, name).model_copy(update=values) for name, values in blocks.items()}
    )
    return replace(run, config=run.config.model_copy(update={"spec": changed}))


def front(run: RunRecord) -> dict[str, Any]:
    return dict(yaml.safe_load(front_matter(run, Artifact.ADAPTER).removeprefix("---\n").removesuffix("---\n")))


def data_of(run: RunRecord) -> ModelCardData:
    return ModelCard(front_matter(run, Artifact.ADAPTER) + "# text\n").data


def test_a_hub_reads_relation_library_and_results(tmp_path: Path) -> None:
    write_documents(make_run(tmp_path), tmp_path, {})
    adapter, merged = (ModelCard.load(tmp_path / name / "README.md").data for name in ("adapter", "merged"))
    assert adapter.base_model == merged.base_model == "HuggingFaceTB/SmolLM2-1.7B-Instruct"
    assert [one.to_dict()["base_model_relation"] for one in (adapter, merged)] == ["adapter", "finetune"]
    assert (adapter.library_name, merged.library_name) == ("peft", "transformers")
    assert adapter.tags == ["finetune-operator", "lora", "sft"]
    assert adapter.license == "apache-2.0"
    results = {one.metric_type: one.metric_value for one in adapter.eval_results or []}
    assert results["loss"] == pytest.approx(1.528, abs=0.01)
    assert results["perplexity"] == pytest.approx(4.6, abs=0.1)


def test_what_is_not_on_a_hub_is_only_in_the_text(tmp_path: Path) -> None:
    run = with_spec(make_run(tmp_path), model={"uri": "s3://models/base", "revision": None})
    run = replace(run, base=BaseFacts())
    matter = front(run)
    assert not {"base_model", "base_model_relation", "datasets", "license"} & matter.keys()
    write_documents(run, tmp_path, {})
    text = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "`s3://models/base`" in text
    assert "licence of the base model is unknown" in text


def test_datasets_of_a_hub_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train = run.config.spec.dataset.train.model_copy(update={"uri": "hf://datasets/owner/rows/train.jsonl"})
    data = data_of(with_spec(run, dataset={"train": train}))
    assert data.datasets == ["owner/rows"]
    assert data.eval_results
    assert data.eval_results[0].dataset_type == "owner/rows"


def test_an_evaluation_was_not_trained_on_its_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train = run.config.spec.dataset.train.model_copy(update={"uri": "hf://datasets/owner/rows/train.jsonl"})
    run = with_spec(run, dataset={"train": train})
    spec = run.config.spec.model_copy(update={"mode": Mode.EVALUATE})
    data = data_of(replace(run, config=run.config.model_copy(update={"spec": spec})))
    assert data.datasets is None
    assert data.eval_results
    assert data.eval_results[0].dataset_type == "owner/rows"


@pytest.mark.parametrize(
    ("stated", "entries"),
    [
        (Licence(("Acme Internal Licence 2.0",)), ("other", "acme-internal-licence-2.0", None)),
        (Licence(("MIT",)), ("mit", None, None)),
        (Licence(("llama3.2", "gemma")), (["llama3.2", "gemma"], None, None)),
        (Licence(("mit", "Free for friends")), (["mit", "other"], "free-for-friends", None)),
        (Licence(("other",), "my-license-1.0", "LICENSE"), ("other", "my-license-1.0", "LICENSE")),
        (Licence(("Our terms",), "Own Name"), ("other", "Own Name", None)),
        (Licence(("无",)), ("other", None, None)),
    ],
)
def test_a_licence_that_a_hub_does_not_list_is_another_one_with_a_name(
    tmp_path: Path, stated: Licence, entries: tuple[Any, ...]
) -> None:
    run = replace(make_run(tmp_path), base=BaseFacts(stated))
    matter = front(run)
    assert (matter["license"], matter.get("license_name"), matter.get("license_link")) == entries
    write_documents(run, tmp_path, {})
    text = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"states the licence `{stated.identifiers[0]}`" in text


def test_figures_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    (index,) = front(replace(make_run(tmp_path), final=Measured(1e4, 10)))["model-index"]
    assert [metric["type"] for metric in index["results"][0]["metrics"]] == ["loss"]


@pytest.mark.parametrize("hostile", [*HOSTILE, "no", "1e3", "a: b", "- x", "&a *b", "---"])
def test_names_cannot_break_the_metadata(tmp_path: Path, hostile: str) -> None:
    hostile = hostile.replace("\ud800", "")
    run = make_run(tmp_path)
    run = replace(
        run,
        config=run.config.model_copy(update={"name": hostile}),
        base=BaseFacts(Licence((hostile,), hostile, hostile)),
    )
    assert data_of(run).model_name == hostile
    assert front(run)["license"] == "other"
    assert front(run)["license_name"] == hostile
