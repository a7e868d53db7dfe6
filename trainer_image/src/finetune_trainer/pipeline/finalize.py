"""From a completed training to its record, from which report, status and lineage are made."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import Artifact, Outcome, Report
from finetune_api.spec import Method
from finetune_api.status import Artifacts, DatasetStatus, KeptCheckpoint, Resolved
from finetune_trainer.config.resolved_manifest import config_yaml
from finetune_trainer.errors import one_line
from finetune_trainer.evaluation.ability import Ability, ability_status, find_forgotten
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.expectations import find_unmet
from finetune_trainer.evaluation.gate_rules import (
    CLEAR_MARGIN,
    LARGEST_MEAN_KL,
    LEAST_AGREEMENT,
    GateResult,
    MergeCheck,
    as_json,
    largest_loss,
)
from finetune_trainer.evaluation.gguf_rules import GgufCheck, gguf_to_json
from finetune_trainer.evaluation.held_out_answers import HeldOutAnswers, answers_status, find_too_few
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.kept_steps import describe_steps, find_kept
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.evaluation.run_record import (
    Answer,
    BaseFacts,
    Machine,
    RewardedAnswer,
    RunRecord,
    ScoreCheck,
    ScoredPair,
    Served,
    measured_rows,
)
from finetune_trainer.evaluation.verdict import to_status
from finetune_trainer.models.architectures import name_loader
from finetune_trainer.models.device import describe_device, peak_memory_bytes
from finetune_trainer.models.files.model_card import describe_base
from finetune_trainer.models.quantised import Quantised
from finetune_trainer.models.tokenizer_class import is_read_otherwise
from finetune_trainer.pipeline.chat_template import name_choice
from finetune_trainer.pipeline.dataset import compute_sample_stats, preview_rows
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.publishing.lineage import build_lineage, library_versions, status_lineage
from finetune_trainer.publishing.openlineage import write_lineage
from finetune_trainer.storage.hub.uris import pinned_commit
from finetune_trainer.storage.protocol import join_uri
from finetune_trainer.tokenization.sample_table import Samples, count_rows, digest_tokens
from finetune_trainer.tokenization.samples import EncodedPrompt, Sample
from finetune_trainer.training.methods import traits_of


@dataclass(frozen=True, kw_only=True)
class TrainedFigures:
    """What is known of a completed training, but is in no other file of the result."""

    settings: Resolved
    final: Measured | None
    parameters: int
    answers: list[Answer]
    machine: Machine
    examples: Sequence[ScoredPair | RewardedAnswer] = ()
    stop_ids: list[int] = field(default_factory=list)
    """The tokens that end an answer."""
    quantised: Quantised | None = None
    """The layers that were NF4 while the adapter was trained."""
    full_loss: float | None = None
    """Mean loss on the tokens that the gate compares a full model on."""
    served: Served | None = None
    """The figures of the model as it will be served, if they are not those of the training: only of QLoRA."""
    ability: Ability | None = None
    """The answers to the questions on general ability of the model that will be served."""
    held_out: HeldOutAnswers | None = None
    """Its answers to the rows of `evaluation.answers`."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult(TrainedFigures):
    """The outcome of a completed training loop; its weights are saved."""

    history: History
    plateau: Plateau
    began: float


def collect_examples(
    samples: Sequence[Sample], before: Sequence[Any], after: Sequence[Any]
) -> list[ScoredPair | RewardedAnswer]:
    """Return the samples for the report: scored pairs, or answers before and after with their rewards."""
    shown: list[ScoredPair | RewardedAnswer] = [one for one in after if isinstance(one, ScoredPair)]
    for sample, old, new in zip(samples, before, after, strict=False):
        if isinstance(sample, EncodedPrompt):
            question = str(sample.messages[-1]["content"])
            shown.append(RewardedAnswer(question, old.text, old.reward, new.text, new.reward))
    return shown


def describe_machine(device: torch.device) -> Machine:
    """Return the device that trained, with the peak of its memory so far."""
    name, memory = describe_device(device)
    return Machine(name, peak_memory_bytes(device), memory, 0.0, library_versions())


def build_record(
    inputs: Inputs, trained: TrainingResult, merge: MergeCheck | ScoreCheck | None, gguf: GgufCheck | None
) -> RunRecord:
    """Collect everything that goes into report and result."""
    labelled_as, sampled = inputs.run.config.spec.labelled_as, trained.history.final_reward
    record = RunRecord(
        config=inputs.run.config,
        settings=trained.settings,
        dataset=inputs.run.config.dataset or DatasetStatus(),
        samples=compute_sample_stats(inputs.rows, inputs.train),
        previews=preview_rows(inputs.rows.train, inputs.labeler, labelled_as, trained.settings.max_length),
        history=trained.history,
        baseline=trained.history.baseline(),
        final=trained.final,
        best_step=trained.plateau.best_step,
        served=trained.served,
        ability=trained.ability,
        held_out=trained.held_out,
        compared_rows=sampled.prompts if sampled else count_rows(inputs.validation),
        early_stopping=inputs.run.reporter.snapshot().early_stopping,
        trainable_parameters=trained.parameters,
        answers=with_merged(trained.answers, merge),
        merge=merge if isinstance(merge, MergeCheck) else None,
        score_check=merge if isinstance(merge, ScoreCheck) else None,
        gguf=gguf,
        kept=describe_steps(find_kept(inputs.result), trained.history),
        scored_pairs=[one for one in trained.examples if isinstance(one, ScoredPair)],
        rewarded_answers=[one for one in trained.examples if isinstance(one, RewardedAnswer)],
        machine=replace(trained.machine, seconds=time.monotonic() - trained.began),
        summary=inputs.rows.summary,
        base=_describe_base(inputs, trained),
    )
    return replace(record, evaluation=evaluate_gates(record))


def _describe_base(inputs: Inputs, trained: TrainingResult) -> BaseFacts:
    spec = inputs.run.config.spec
    found = describe_base(inputs.model, inputs.labeler, inputs.licence, [answer.turns for answer in trained.answers])
    found = replace(
        found,
        chosen_template=name_choice(spec.model.chat_template),
        is_tokenizer_read_otherwise=trained.settings.method != Method.FULL
        and is_read_otherwise(inputs.model, inputs.labeler),
    )
    return replace(found, loader=name_loader(inputs.model)) if traits_of(spec.objective).writes_text else found


def with_merged(answers: list[Answer], merge: MergeCheck | ScoreCheck | None) -> list[Answer]:
    """Add the answers of the published full model."""
    chosen = merge.chosen if isinstance(merge, MergeCheck) else None
    if chosen is None or len(chosen.answers) != len(answers):
        return answers
    return [replace(answer, merged=merged) for answer, merged in zip(answers, chosen.answers, strict=True)]


def evaluate_gates(record: RunRecord) -> EvaluationStatus:
    """Return the verdict and the gates' results; the files hold all figures."""
    requested = record.config.spec.evaluation.gate
    missed = find_unmet(requested, record.verdict, record.detail, record.judged_loss, record.answers)
    obstacle = record.served.obstacle if record.served else ""
    missed += find_forgotten(requested, record.ability, obstacle)
    missed += find_too_few(requested, record.held_out, obstacle)
    gate = GateResult.NOT_CONFIGURED if requested is None else GateResult.NOT_MET if missed else GateResult.PASSED
    merged = record.merge.result if record.merge else GateResult.NOT_ASKED
    gguf = record.gguf.result if record.gguf else GateResult.NOT_ASKED
    problems = [*missed, *(one.sentence for one in (record.merge, record.gguf) if one and one.sentence)]
    gates = {
        "gate": gate.value,
        "merge_gate": merged.value,
        "gguf_gate": gguf.value,
        "gate_message": one_line("; ".join(problems)) or None,
    }
    served_as = "Model" if record.settings.method == Method.FULL else "Adapter"
    status = to_status(record.comparison, one_line(record.detail), record.compared_rows, served_as)
    counted = answers_status(record.held_out, record.choices)
    return status.model_copy(update=gates | {"ability": ability_status(record.ability), "answers": counted})


def build_result(inputs: Inputs, record: RunRecord) -> Report:
    """Return the report to publish; write lineage.json, validation.json, held_out.json and finetune_config.yaml."""
    config = inputs.run.config
    model_files = inputs.model_files
    inputs.run.reporter.update(metrics={"tokens_per_second": record.history.tokens_per_second()})
    evaluation = record.evaluation
    outcome = Outcome.PUBLISHED if evaluation.is_met is not False else Outcome.GATE_NOT_MET
    validation = validation_json(evaluation, record.merge, record.gguf)
    (inputs.result / Artifact.VALIDATION).write_text(validation, encoding="utf-8")
    if isinstance(inputs.validation, Samples) and (rows := measured_rows(record, digest_tokens(inputs.validation))):
        (inputs.result / Artifact.HELD_OUT).write_text(rows.model_dump_json(by_alias=True) + "\n", encoding="utf-8")
    result = Report(
        outcome=outcome,
        reason=outcome.value,
        message=evaluation.gate_message or summarize(record),
        job_uid=config.uid,
        config_sha256=config.config_sha256,
        last_step=record.last_step,
        resumed_from_step=inputs.run.reporter.snapshot().progress.resumed_from_step,
        dataset=config.dataset,
        resolved=record.settings,
        metrics=inputs.run.reporter.snapshot().metrics,
        early_stopping=record.early_stopping,
        evaluation=evaluation,
        artifacts=list_kept(record),
        lineage=status_lineage(
            config,
            dataset_sha256=inputs.rows.train_sha256,
            preflight_sha256=inputs.rows.summary_sha256,
            model_files=model_files,
            initial_adapter_sha256=inputs.initial_adapter.sha256 if inputs.initial_adapter else None,
            teacher_revision=pinned_commit(inputs.teacher.model) if inputs.teacher else None,
            teacher_sha256=inputs.teacher.sha256 if inputs.teacher else None,
        ),
    )
    rows_read = [str(source["uri"]) for source in inputs.rows.summary.get("sources", [])]
    config_file = config_yaml(config, record.settings, rows_read)
    (inputs.result / Artifact.CONFIG).write_text(config_file, encoding="utf-8")
    lineage = build_lineage(
        config,
        result,
        model_files=model_files,
        template_sha256=inputs.labeler.template_sha256,
        dataset=inputs.rows.summary,
        device=record.machine.device,
        initial_adapter_uri=inputs.initial_adapter.uri if inputs.initial_adapter else None,
        teacher=inputs.teacher.lineage() if inputs.teacher else None,
        config_file=config_file,
        seconds=record.machine.seconds,
    )
    write_lineage(lineage, inputs.result)
    return result


def list_kept(record: RunRecord) -> Artifacts | None:
    """Return the adapters of other steps for the status; None without `checkpoint.keep`."""
    uri = record.config.output_key()
    found = [
        KeptCheckpoint(
            step=one.step, epoch=one.epoch, eval_loss=one.loss, eval_reward=one.reward, uri=join_uri(uri, one.folder)
        )
        for one in record.kept
    ]
    return Artifacts(kept_checkpoints=found) if found else None


def summarize(record: RunRecord) -> str:
    """Return the message of a published result."""
    return (
        f"{'evaluated the adapter' if record.is_evaluation else f'trained {record.last_step} steps'}; {record.detail}"
    )


def validation_json(evaluation: EvaluationStatus, check: MergeCheck | None, gguf: GgufCheck | None) -> str:
    """Return the content of validation.json."""
    content: dict[str, Any] = {
        "evaluationGate": evaluation.gate,
        "mergeGate": evaluation.merge_gate,
        "ggufGate": evaluation.gguf_gate,
    }
    content["verdict"] = evaluation.model_dump(
        by_alias=True, exclude_none=True, exclude={"gate", "merge_gate", "gguf_gate", "gate_message"}
    )
    if evaluation.gate_message:
        content["message"] = evaluation.gate_message
    if check:
        content |= _merge_to_json(check)
    if gguf:
        content["gguf"] = gguf_to_json(gguf)
    return json.dumps(content, indent=2) + "\n"


def _merge_to_json(check: MergeCheck) -> dict[str, Any]:
    return {
        "precision": check.precision,
        "chosen": check.chosen.name if check.chosen else None,
        "notRun": check.not_run or None,
        "seconds": round(check.seconds, 1),
        "trainedLoss": check.trained_loss,
        "rules": {
            "largestMeanKl": LARGEST_MEAN_KL,
            "leastAgreementOnClearTokens": LEAST_AGREEMENT,
            "clearMargin": CLEAR_MARGIN,
            "largestLoss": largest_loss(check.trained_loss),
        },
        "candidates": [as_json(one, its) for one, its in zip(check.candidates, check.faults, strict=False)],
    }
