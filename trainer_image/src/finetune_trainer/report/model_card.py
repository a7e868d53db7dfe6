"""README.md next to the weights: the metadata that a model hub reads."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from finetune_api.handoff import Artifact
from finetune_api.objectives import Objective
from finetune_trainer.evaluation.measurements import RewardPoint
from finetune_trainer.evaluation.run_record import Licence, RunRecord
from finetune_trainer.report.held_out import find_terms
from finetune_trainer.storage.hub.uris import is_hub_uri, parse_hub_uri, repo_name

TAGS = {
    Objective.DPO: "dpo",
    Objective.KTO: "kto",
    Objective.REWARD_MODEL: "reward-model",
    Objective.RLHF: "rlhf",
    Objective.DISTILLATION: "distillation",
    Objective.DOMAIN_ADAPTATION: "continued-pretraining",
}
"""A model card's tag, by which a hub finds models trained with the same objective."""

_LISTED = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
HUB_LICENCES = frozenset(_LISTED.split())
"""The identifiers that the Hugging Face hub accepts in a model card; it refuses a push with another one."""


def front_matter(record: RunRecord, folder: Artifact) -> str:
    """Return the metadata as YAML between its fences."""
    return f"---\n{yaml.safe_dump(metadata(record, folder), sort_keys=False, allow_unicode=True)}---\n"


def metadata(record: RunRecord, folder: Artifact) -> dict[str, Any]:
    """Return the metadata that the Hugging Face hub reads; unknown values are left out."""
    spec = record.config.spec
    is_adapter = folder is Artifact.ADAPTER
    found: dict[str, Any] = {}
    if is_hub_uri(spec.model.uri):
        found |= {
            "base_model": repo_name(spec.model.uri),
            "base_model_relation": "adapter" if is_adapter else "finetune",
        }
    datasets = hub_datasets(record)
    if datasets and not record.is_evaluation:
        found["datasets"] = datasets
    found["library_name"] = "peft" if is_adapter else "transformers"
    is_reward_model = spec.objective is Objective.REWARD_MODEL
    found["pipeline_tag"] = "text-classification" if is_reward_model else "text-generation"
    tag = TAGS.get(spec.objective, "sft")
    found["tags"] = ["finetune-operator", *(["lora"] if is_adapter else []), tag]
    found |= _licence(record.base.licence)
    if metrics := measured(record):
        found["model-index"] = [{"name": record.config.name, "results": [_result(found, datasets, metrics)]}]
    return found


def hub_datasets(record: RunRecord) -> list[str]:
    """Return `owner/name` of every dataset that is on a hub."""
    spec = record.config.spec.dataset
    uris = [*spec.train.uris, *([spec.validation.uri] if spec.validation else [])]
    return sorted({parse_hub_uri(uri).repo.name for uri in uris if is_hub_uri(uri)})


def measured(record: RunRecord) -> list[dict[str, Any]]:
    """Return the published model's figures on the held-out rows, without infinite ones."""
    values: dict[tuple[str, str], float | None] = {}
    final = record.judged[1]
    if isinstance(final, RewardPoint):
        values["reward", "Mean reward"] = final.reward
    elif final:
        has_perplexity = find_terms(record.config.spec.objective).has_perplexity
        values["loss", "Evaluation loss"] = final.loss
        values["perplexity", "Perplexity"] = final.perplexity if has_perplexity else None
        values["accuracy", "Accuracy of preferences"] = final.reward_accuracy
    return [
        {"type": kind, "name": name, "value": round(value, 6)}
        for (kind, name), value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _licence(licence: Licence | None) -> dict[str, Any]:
    """Return the licence that the base model's card states; one that a hub does not list is `other` with a name."""
    if licence is None:
        return {}
    free = [one for one in licence.identifiers if one.lower() not in HUB_LICENCES]
    first, *others = dict.fromkeys("other" if one in free else one.lower() for one in licence.identifiers)
    found: dict[str, Any] = {"license": [first, *others] if others else first}
    name = licence.name or (re.sub(r"[^a-z0-9.]+", "-", free[0].lower()).strip("-") if free else None)
    return found | {key: value for key, value in (("license_name", name), ("license_link", licence.link)) if value}


def _result(found: Mapping[str, Any], datasets: list[str], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    dataset = {"type": datasets[0] if datasets else "held-out-rows", "name": "Held-out rows of the job's dataset"}
    return {"task": {"type": found["pipeline_tag"]}, "dataset": dataset, "metrics": metrics}
