"""The full model: each candidate made and judged, the best one kept, the others gone."""

import gc
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from finetune_trainer.evaluation.run_record import ScoreCheck
from finetune_trainer.merging.gate import GateNotRun, require_memory, run_gate
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.gate_worker import load_source, open_merge
from finetune_trainer.merging.merge import Unmapped, copy_settings, is_conv1d, stored_precision
from finetune_trainer.merging.score_export import save_scoring_model
from finetune_trainer.models.adapter_output import save_tokenizer
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.pipeline.finalize import Trained
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.publishing.lineage import combined_sha256, digest_folder
from finetune_trainer.tokenization.samples import EncodedPair
from finetune_trainer.training.methods import traits_of

logger = logging.getLogger(__name__)

PLAIN, DEQUANTISED, TUNED = "unquantised base", "dequantised base", "trained weights"


def is_asked(inputs: Inputs) -> bool:
    """Whether a full model is to be published: always with method Full, else as `output.merge` says."""
    config = inputs.run.config
    method = (config.resolved.method if config.resolved else None) or config.spec.tuning.method
    return method == Method.FULL or config.spec.output.merge is not Merge.NONE


def make_full_model(inputs: Inputs, trained: Trained) -> MergeCheck | ScoreCheck | None:
    """`merged/`, if it is asked for and passes the gate; None where it is not asked for."""
    if not is_asked(inputs):
        return None
    gc.collect()
    run = inputs.run
    run.reporter.stage("Merging")
    output, on_work = inputs.result / Artifact.MERGED, run.on_work
    _refuse_moved_base(inputs, on_work)
    if not traits_of(inputs.run.config.spec.objective).writes_text:
        pairs = [sample for sample in inputs.validation or inputs.train if isinstance(sample, EncodedPair)]
        check = save_scoring_model(inputs.model, inputs.best_weights, output, pairs, on_work)
        save_tokenizer(inputs.model, output, inputs.labeler)
        return check
    began = time.monotonic()
    plan = plan_for(inputs, trained)
    try:
        for candidate in plan.candidates:
            make_candidate(plan, candidate, on_work)
            save_tokenizer(inputs.model, candidate.directory, inputs.labeler)
        judged = judge(inputs, trained, plan, run_gate(plan, run.workspace, run.reporter, run.stop))
    except GateNotRun as why:
        judged = MergeCheck(plan.precision, trained.full_loss, [], [], None, str(why))
    judged = replace(judged, seconds=time.monotonic() - began)
    for candidate in plan.candidates:
        if judged.chosen and judged.chosen.name == candidate.name:
            shutil.move(candidate.directory, output)
        else:
            shutil.rmtree(candidate.directory, ignore_errors=True)
    if judged.chosen is None and plan.weights:  # they are in nothing else
        shutil.copyfile(plan.weights, inputs.result / Artifact.WITHHELD)
    return judged


def plan_for(inputs: Inputs, trained: Trained) -> GatePlan:
    """What to make and how to judge it; QLoRA has two bases that its adapter can be merged into."""
    spec, is_full = inputs.run.config.spec, trained.settings.method == Method.FULL
    precision = stored_precision(inputs.model) if spec.output.merge is Merge.NONE else spec.output.merge.value
    candidates = [Candidate(name=TUNED if is_full else PLAIN, directory=inputs.run.workspace / "merged-1")]
    if trained.quantised and not is_conv1d(inputs.model):  # what is turned before it is quantised has another result
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
        samples=[(list(one.input_ids), list(one.labels)) for one in inputs.held_out[:JUDGED_ROWS]],
        prompts=[answer.prompt for answer in trained.answers],
        stop_ids=trained.stop_ids,
        max_new_tokens=spec.evaluation.max_new_tokens,
        tokenizer_sha256=tokenizer_digests(inputs),
        device="cpu",
    )


JUDGED_ROWS = 512


def tokenizer_digests(inputs: Inputs) -> dict[str, str]:
    """The tokenizer's files and templates as the training used them, each by its digest."""
    scratch = inputs.run.workspace / "tokenizer-used"
    shutil.rmtree(scratch, ignore_errors=True)
    save_tokenizer(inputs.model, scratch, inputs.labeler)
    return digest_folder(scratch)


def make_candidate(plan: GatePlan, candidate: Candidate, on_work: Callable[[], None]) -> None:
    """Tensor by tensor, or by the library where the base's files name their tensors otherwise than the model does."""
    try:
        with open_merge(plan, candidate) as merge:
            merge.write(candidate.directory, on_work)
        copy_settings(plan.base, candidate.directory, plan.precision)
    except Unmapped as why:
        logger.info("the full model is made in memory: %s", why)
        require_memory(plan)
        model: PreTrainedModel | PeftModel = load_source(plan, candidate, torch.device("cpu"))
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        model.to(DTYPES[plan.precision]).save_pretrained(candidate.directory)


def judge(inputs: Inputs, trained: Trained, plan: GatePlan, seen: Sequence[ValidationResult]) -> MergeCheck:
    """What follows from what the gate saw."""
    expected = Expectations(inputs.run.config.spec.evaluation.prompts or [])
    asked = [
        GatePrompt(
            answer.prompt,
            answer.tuned,
            expected.are_met(at, [answer.tuned, *(_nth(one.answers, at) for one in seen)]),
        )
        for at, answer in enumerate(trained.answers)
    ]
    faults = [find_faults(one, trained.full_loss, asked, at) for at, one in enumerate(seen)]
    return MergeCheck(plan.precision, trained.full_loss, list(seen), faults, choose_candidate(seen, faults))


def _nth(answers: Sequence[str], at: int) -> str:
    return answers[at] if at < len(answers) else ""


def _refuse_moved_base(inputs: Inputs, on_work: Callable[[], None]) -> None:
    """A cache that others share may have been written to while this job trained."""
    now = combined_sha256(digest_folder(inputs.model, lambda _count: on_work()))
    if inputs.model_files and now != inputs.base_sha256:
        raise TrainerError(
            ExitCode.MODEL_UNAVAILABLE,
            f"the base model's files have changed since they were loaded (SHA-256 {inputs.base_sha256[:12]}, now "
            f"{now[:12]}), and nothing is merged into them: train again",
        )
