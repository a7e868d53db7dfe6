"""The gate's own process: reads full models back as a user would, one at a time, and compares each with its source.

`python -m finetune_trainer.merging.gate_worker PLAN REPLY`; a line on standard output reports every piece of work.
"""

import gc
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gate_rules import CLEAR_MARGIN, ValidationResult
from finetune_trainer.evaluation.generate import answer_all
from finetune_trainer.evaluation.logprobs import COMPARED_TOKENS, HeldOut, RowLogprobs, iterate_logprobs
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, Candidate, GatePlan, GateReply
from finetune_trainer.merging.merge import STORED, Merge, Nf4, Unmapped, open_adapter_merge, open_full_merge
from finetune_trainer.merging.tuned_model import load_adapter
from finetune_trainer.models.files.base_model import read_config
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import DTYPES, load_plain
from finetune_trainer.storage.protocol import sha256_file
from finetune_trainer.tokenization.labeler import load_labeler
from finetune_trainer.tokenization.samples import Encoded

COMPUTED = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
"""Buffers in the files of older models, which the model computes itself."""


def examine(plan: GatePlan, candidate: Candidate) -> ValidationResult:
    """Return the faults of a candidate's files, or its comparison with its source."""
    faults = find_candidate_faults(plan, candidate)
    if faults:
        return ValidationResult(candidate.name, faults)
    held_out = HeldOut([Encoded(ids, labels, len(ids)) for ids, labels in plan.samples], signal_progress)
    device = torch.device(plan.device)
    reference = keep_logprobs(iterate_logprobs(load_source(plan, candidate, device), held_out))
    free_memory()
    try:
        model = load_plain(candidate.directory, DTYPES[plan.precision], device)
    except TrainerError as error:
        return ValidationResult(candidate.name, [error.message])
    answers = generate_answers(plan, candidate.directory, model)
    return compare_logprobs(candidate.name, reference, keep_logprobs(iterate_logprobs(model, held_out)), answers)


def find_candidate_faults(plan: GatePlan, candidate: Candidate) -> list[str]:
    """Return how tokenizer, templates and tensors differ from those of base and training."""
    directory, faults = candidate.directory, []
    for path, digest in plan.tokenizer_sha256.items():
        file = directory / path
        if not file.is_file():
            faults.append(f"{path} is missing")
        elif sha256_file(file) != digest:
            faults.append(f"{path} differs from the one used for training")
    try:
        with open_merge(plan, candidate) as merge, TensorFiles.of_folder(directory) as own:
            faults += find_tensor_faults(merge, own)
    except Unmapped:
        with TensorFiles.of_folder(plan.base) as base, TensorFiles.of_folder(directory) as own:
            faults += find_lost_parts(plan.base, directory, base, own)
            faults += find_value_faults(own, STORED[plan.precision])
    return faults[:8]


def find_lost_parts(base: Path, directory: Path, before: TensorFiles, own: TensorFiles) -> list[str]:
    """Return what a candidate that the library wrote lacks of its base: the architecture, or tensors.

    The library may add or remove a prefix of names, and leaves out a tied head and buffers that the model computes.
    """
    was, config = read_config(base), read_config(directory)
    faults = []
    if was.get("architectures") and config.get("architectures") != was["architectures"]:
        faults.append(f"the architecture is {_names(config)} instead of {_names(was)}")
    found = own.headers.keys() | {_without_prefix(name) for name in own.headers}
    lost = [
        name
        for name, header in before.headers.items()
        if header.is_floating and not COMPUTED.search(name)
        if name not in found and _without_prefix(name) not in own.headers
    ]
    if config.get("tie_word_embeddings", True):
        lost = [name for name in lost if not name.endswith("lm_head.weight")]
    if lost:
        faults.append(f"{len(lost)} of the base's tensors are missing, for example {min(lost)}")
    return faults


def _names(config: dict[str, Any]) -> str:
    return ", ".join(config.get("architectures") or ["unknown"])


def _without_prefix(name: str) -> str:
    return name.partition(".")[2]


def find_tensor_faults(merge: Merge, own: TensorFiles) -> list[str]:
    """Return which tensors are missing, superfluous, or not bit for bit what base and training produce."""
    faults = [f"tensor {name} is missing" for name in merge.names if name not in own.headers]
    faults += [f"tensor {name} belongs to no layer" for name in own.headers if name not in merge.names]
    if not faults:
        faults = find_value_faults(own, STORED[merge.precision])
    for name in merge.names if not faults else ():
        signal_progress()
        expected, found = merge.tensor(name), own.read(name)
        if expected.shape != found.shape:
            faults.append(f"tensor {name} has shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        elif not torch.equal(expected, found):
            count = int((expected != found).sum())
            faults.append(f"tensor {name} has {count} values that base and training do not produce")
    return faults


def find_value_faults(own: TensorFiles, dtype: str) -> list[str]:
    """Return which weights are not finite or not in the requested number format."""
    faults = []
    for name, header in own.headers.items():
        signal_progress()
        if header.is_floating and header.dtype != dtype:
            faults.append(f"tensor {name} is in {header.dtype} instead of {dtype}")
        elif header.is_floating and not torch.isfinite(own.read(name)).all():
            faults.append(f"tensor {name} has values that are not finite")
    return faults


def open_merge(plan: GatePlan, candidate: Candidate) -> AbstractContextManager[Merge]:
    """Open the merge that makes the candidate."""
    if plan.adapter:
        return open_adapter_merge(plan.base, plan.adapter, plan.precision, find_nf4(plan, candidate))
    return open_full_merge(plan.base, plan.weights or plan.base, plan.precision)


def find_nf4(plan: GatePlan, candidate: Candidate) -> Nf4 | None:
    """Return the quantisation of the candidate's base; None if it is not quantised."""
    layers = plan.quantised if candidate.is_dequantised else None
    return Nf4(frozenset(layers.modules), layers.double_quant, DTYPES[layers.compute]) if layers else None


def load_source(plan: GatePlan, candidate: Candidate, device: torch.device) -> PreTrainedModel | PeftModel:
    """Load the candidate's source: its own base with the adapter applied, in the merge's number format; for a fully
    tuned model the trained weights in FP32."""
    if plan.adapter is None:
        model = load_plain(plan.base, torch.float32, device)
        model.load_state_dict(load_file(plan.weights or plan.base), strict=False)
        return model
    return _load_adapted(plan, plan.adapter, candidate, device)


def _load_adapted(plan: GatePlan, adapter: Path, candidate: Candidate, device: torch.device) -> PeftModel:
    """Load the base with the adapter; its weights are dequantised from NF4 if the candidate was merged into those."""
    model = load_plain(plan.base, DTYPES[plan.precision], device)
    if nf4 := find_nf4(plan, candidate):
        for name, parameter in model.named_parameters():
            signal_progress()
            parameter.data = nf4.through(name, parameter.data).to(parameter.dtype)
    return load_adapter(model, adapter)


def keep_logprobs(found: Iterable[RowLogprobs]) -> list[RowLogprobs]:
    """Return the rows; beyond the compared tokens only the log-probabilities of the correct tokens are kept."""
    rows, room = [], COMPARED_TOKENS
    for seen in found:
        if room:
            rows.append(RowLogprobs(seen.log_probs[:room].clone(), seen.labels[:room]))
        if len(seen.labels) > room:
            nats = seen.log_probs[room:].gather(1, seen.labels[room:, None])
            rows.append(RowLogprobs(nats, torch.zeros_like(seen.labels[room:])))
        room = max(0, room - len(seen.labels))
    return rows


def compare_logprobs(
    name: str, reference: Sequence[RowLogprobs], own: Sequence[RowLogprobs], answers: list[str]
) -> ValidationResult:
    """Compare divergence and top tokens on the compared tokens, losses on all."""
    tokens = sum(len(row.labels) for row in own)
    kl, agreed, clear, clear_agreed, largest, compared = 0.0, 0, 0, 0, 0.0, 0
    for ours, theirs in zip(own, reference, strict=True):
        if ours.log_probs.shape[1] == 1:
            continue
        p, q = theirs.log_probs, ours.log_probs
        kl += float((p.exp() * (p - q)).sum(-1).clamp(min=0).double().sum())
        is_same = p.argmax(-1) == q.argmax(-1)
        best = p.topk(2, -1).values
        is_clear = best[:, 0] - best[:, 1] > CLEAR_MARGIN
        agreed += int(is_same.sum())
        clear += int(is_clear.sum())
        clear_agreed += int((is_same & is_clear).sum())
        largest = max(largest, float((p - q).abs().max()))
        compared += len(p)
    return ValidationResult(
        name,
        [],
        loss=sum(row.nats for row in own) / max(tokens, 1),
        reference_loss=sum(row.nats for row in reference) / max(tokens, 1),
        mean_kl=kl / max(compared, 1),
        top1_agreement=agreed / max(compared, 1),
        clear_agreement=clear_agreed / clear if clear else None,
        largest_difference=largest,
        tokens=tokens,
        answers=answers,
    )


def generate_answers(plan: GatePlan, directory: Path, model: PreTrainedModel) -> list[str]:
    """Return the candidate's answers, with the tokenizer and template in its own folder."""
    if not plan.prompts:
        return []
    labeler = load_labeler(directory, directory.name)
    return answer_all(
        model,
        labeler,
        plan.prompts,
        stop_ids=plan.stop_ids,
        max_new_tokens=plan.max_new_tokens,
        on_token=signal_progress,
    )


def free_memory() -> None:
    """Free the memory of the previous model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def signal_progress() -> None:
    """Print a line, which the trainer takes as progress."""
    sys.stdout.write("\n")
    sys.stdout.flush()


def run_plan(plan_file: str, answer_file: str) -> None:
    """Examine every candidate of a plan, and write the results."""
    plan = GatePlan.model_validate_json(Path(plan_file).read_bytes())
    seen = []
    for candidate in plan.candidates:
        try:
            seen.append(examine(plan, candidate))
        except (torch.OutOfMemoryError, MemoryError):
            sys.exit(OUT_OF_MEMORY)
        free_memory()
    Path(answer_file).write_text(GateReply(results=seen).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    run_plan(*sys.argv[1:3])
    sys.stdout.flush()
    os._exit(0)  # the interpreter would take a second and a half to take the libraries apart
