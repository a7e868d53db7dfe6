"""The full model: write and validate each candidate, keep the best one and remove the others."""

import gc
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.handoff import Artifact, ExitCode
from finetune_api.spec import Merge, Method
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.evaluation.gate_rules import (
    GatePrompt,
    MergeCheck,
    ValidationResult,
    choose_candidate,
    find_faults,
)
from finetune_trainer.evaluation.run_record import Answer, ScoreCheck
from finetune_trainer.merging.gate import GateNotRun, require_memory, run_gate
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.gate_worker import load_source, open_merge
from finetune_trainer.merging.merge import (
    Unmapped,
    add_ignored,
    copy_companions,
    copy_settings,
    is_conv1d,
    stored_precision,
)
from finetune_trainer.merging.score_export import COMPARED_PAIRS, save_scoring_model
from finetune_trainer.models.adapters.saved import save_generation_config, save_tokenizer
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.pipeline.finalize import TrainingResult
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.publishing.lineage import combined_sha256, digest_folder
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import EncodedPair
from finetune_trainer.training.methods import traits_of

logger = logging.getLogger(__name__)

JUDGED_ROWS = 512
PLAIN, DEQUANTISED, TUNED = "unquantised base", "dequantised base", "trained weights"


def is_full_model_requested(inputs: Inputs) -> bool:
    """Return whether a full model is requested: always with method Full, otherwise by `output.merge`."""
    config = inputs.run.config
    method = (config.resolved.method if config.resolved else None) or config.spec.tuning.method
    return method == Method.FULL or config.spec.output.merge is not Merge.NONE


def make_full_model(inputs: Inputs, trained: TrainingResult) -> MergeCheck | ScoreCheck | None:
    """Write `merged/` if it is requested and a candidate passes the gate; return None if it is not requested."""
    if not is_full_model_requested(inputs):
        return None
    gc.collect()
    run = inputs.run
    run.reporter.set_stage("Merging")
    output, on_work = inputs.result / Artifact.MERGED, run.on_work
    _require_unchanged_base(inputs, on_work)
    if not traits_of(inputs.run.config.spec.objective).writes_text:
        samples = (inputs.validation or inputs.train)[:COMPARED_PAIRS]
        pairs = [sample for sample in samples if isinstance(sample, EncodedPair)]
        score = save_scoring_model(inputs.model, inputs.best_weights, output, pairs, on_work)
        save_tokenizer(inputs.model, output, inputs.labeler)
        return score
    began = time.monotonic()
    plan = build_plan(inputs, trained)
    try:
        for candidate in plan.candidates:
            make_candidate(plan, candidate, on_work)
            save_tokenizer(inputs.model, candidate.directory, inputs.labeler)
            save_generation_config(inputs.model, candidate.directory, trained.stop_ids)
        check = judge_candidates(trained, plan, run_gate(plan, run.workspace, run.reporter.beat, run.stop))
    except GateNotRun as why:
        check = MergeCheck(plan.precision, trained.full_loss, [], [], None, str(why))
    check = replace(check, seconds=time.monotonic() - began)
    for candidate in plan.candidates:
        if check.chosen and check.chosen.name == candidate.name:
            shutil.move(candidate.directory, output)
        else:
            shutil.rmtree(candidate.directory, ignore_errors=True)
    if check.chosen is None and plan.weights:  # no other file holds them
        shutil.copyfile(plan.weights, inputs.result / Artifact.WITHHELD)
    return check


def build_plan(inputs: Inputs, trained: TrainingResult) -> GatePlan:
    """Return the candidates and how to validate them; a QLoRA adapter can be merged into two bases."""
    spec, is_full = inputs.run.config.spec, trained.settings.method == Method.FULL
    precision = stored_precision(inputs.model) if spec.output.merge is Merge.NONE else spec.output.merge.value
    candidates = [Candidate(name=TUNED if is_full else PLAIN, directory=inputs.run.workspace / "merged-1")]
    # A Conv1D weight is transposed before it is quantised, so dequantising gives other values.
    if trained.quantised and not is_conv1d(inputs.model):
        directory = inputs.run.workspace / "merged-2"
        candidates.append(Candidate(name=DEQUANTISED, directory=directory, is_dequantised=True))
    for candidate in candidates:
        shutil.rmtree(candidate.directory, ignore_errors=True)
    return GatePlan(
        base=inputs.model,
        adapter=None if is_full else inputs.result / Artifact.ADAPTER,
        weights=inputs.best_weights if is_full else None,
        quantised=trained.quantised,
        precision=precision,
        candidates=candidates,
        samples=[(list(one.input_ids), list(one.labels)) for one in inputs.held_out(JUDGED_ROWS)],
        prompts=[answer.turns for answer in asked_answers(trained)],
        stop_ids=trained.stop_ids,
        max_new_tokens=spec.evaluation.max_new_tokens,
        tokenizer_sha256=digest_tokenizer(inputs.model, inputs.labeler, inputs.run.workspace / "tokenizer-used"),
        device="cpu",
    )


def asked_answers(trained: TrainingResult) -> list[Answer]:
    """Return the answers to the job's own prompts: those to held-out rows are for reading, and slow on a CPU."""
    return [answer for answer in trained.answers if answer.reference is None]


def digest_tokenizer(model: Path, labeler: Labeler, scratch: Path) -> dict[str, str]:
    """Return the digest of each tokenizer file and template that a full model must have."""
    shutil.rmtree(scratch, ignore_errors=True)
    save_tokenizer(model, scratch, labeler)
    return digest_folder(scratch)


def make_candidate(plan: GatePlan, candidate: Candidate, on_work: Callable[[], None]) -> None:
    """Merge tensor by tensor, or with the library if tensor names differ between the base's files and the model."""
    try:
        with open_merge(plan, candidate) as merge:
            merge.write(candidate.directory, on_work)
        copy_settings(plan.base, candidate.directory, plan.precision)
    except Unmapped as why:
        logger.info("merging the full model in memory: %s", why)
        require_memory(plan)
        model: PreTrainedModel | PeftModel = load_source(plan, candidate, torch.device("cpu"))
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        model.to(DTYPES[plan.precision]).save_pretrained(candidate.directory)
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        add_ignored(plan.base, candidate.directory, ignored, plan.precision)
    copy_companions(plan.base, candidate.directory)


def judge_candidates(trained: TrainingResult, plan: GatePlan, results: Sequence[ValidationResult]) -> MergeCheck:
    """Compare the gate's results with the trained model and choose a candidate."""
    answers = asked_answers(trained)
    expected = Expectations(answers)
    asked = [
        GatePrompt(
            answer.prompt,
            answer.tuned,
            expected.are_met(at, [answer.tuned, *(_nth(one.answers, at) for one in results)]),
        )
        for at, answer in enumerate(answers)
    ]
    faults = [find_faults(one, trained.full_loss, asked, at) for at, one in enumerate(results)]
    return MergeCheck(plan.precision, trained.full_loss, list(results), faults, choose_candidate(results, faults))


def _nth(answers: Sequence[str], at: int) -> str:
    return answers[at] if at < len(answers) else ""


def _require_unchanged_base(inputs: Inputs, on_work: Callable[[], None]) -> None:
    """Raise if the base model's files changed since they were loaded; a shared cache can be modified."""
    now = combined_sha256(digest_folder(inputs.model, lambda _count: on_work()))
    if inputs.model_files and now != inputs.base_sha256:
        raise TrainerError(
            ExitCode.MODEL_UNAVAILABLE,
            f"the base model's files have changed since they were loaded (SHA-256 {inputs.base_sha256[:12]}, now "
            f"{now[:12]}), so nothing is merged into them: train again",
        )
