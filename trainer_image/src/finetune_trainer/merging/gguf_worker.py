"""The process that quantises GGUF files, reads them back with llama.cpp, and compares them with the full model.

`python -m finetune_trainer.merging.gguf_worker PLAN REPLY`; a line on standard output reports every piece of work.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from finetune_trainer.evaluation.gate_rules import ValidationResult
from finetune_trainer.evaluation.logprobs import LOSS_TOKENS, HeldOut, RowLogprobs, iterate_logprobs
from finetune_trainer.merging.gate_messages import OUT_OF_MEMORY, GateReply
from finetune_trainer.merging.gate_worker import compare_logprobs, free_memory, keep_logprobs, signal_progress
from finetune_trainer.merging.gguf_messages import GgufFile, GgufPlan
from finetune_trainer.merging.llama_cpp_model import LlamaCppError, LlamaCppModel, open_model, quantise
from finetune_trainer.models.loading import DTYPES, load_plain
from finetune_trainer.tokenization.labeler import Labeler, load_labeler
from finetune_trainer.tokenization.samples import Encoded


def examine(plan: GgufPlan, reference: Sequence[RowLogprobs], labeler: Labeler, file: GgufFile) -> ValidationResult:
    """Write one file, and return its faults or its comparison with the full model."""
    prompts = [labeler.render_prompt(prompt)[1] for prompt in plan.prompts]
    longest = max(
        [len(ids) for ids, _ in plan.samples] + [len(ids) + plan.max_new_tokens for ids in prompts], default=1
    )
    try:
        if file.path != plan.converted.path:
            quantise(plan.converted.path, file.path, file.type, torch.get_num_threads())
        with open_model(file.path, longest, torch.get_num_threads()) as model:
            same_tokens = compare_tokens(plan, model, labeler)
            own = keep_logprobs(iterate_rows(plan, model))
            answers = [
                labeler.tokenizer.decode(
                    model.answer(ids, plan.stop_ids, plan.max_new_tokens, signal_progress), skip_special_tokens=True
                ).strip()
                for ids in prompts
            ]
    except LlamaCppError as error:
        return ValidationResult(file.type, [str(error)])
    return replace(compare_logprobs(file.type, reference, own, answers), same_tokens=same_tokens)


def compare_tokens(plan: GgufPlan, model: LlamaCppModel, labeler: Labeler) -> float | None:
    """Return the share of the held-out text's tokens that llama.cpp makes as the tokenizer does; None without rows."""
    shared = total = 0
    for ids, _ in plan.samples:
        text = labeler.tokenizer.decode(ids, skip_special_tokens=False)
        own, theirs = (
            Counter(labeler.tokenizer.encode(text, add_special_tokens=False).ids),
            Counter(model.tokenize(text)),
        )
        shared += (own & theirs).total()
        total += max(own.total(), theirs.total())
    return shared / total if total else None


def iterate_rows(plan: GgufPlan, model: LlamaCppModel) -> Iterator[RowLogprobs]:
    """Yield the log-probabilities of the same tokens as `iterate_logprobs`."""
    remaining = LOSS_TOKENS
    for ids, labels in plan.samples:
        targets = torch.tensor(labels[1:])
        positions = (targets >= 0).nonzero()[:remaining, 0]
        if len(positions):
            remaining -= len(positions)
            signal_progress()
            yield RowLogprobs(model.log_probs(ids[: int(positions[-1]) + 1], positions.tolist()), targets[positions])


def run_plan(plan_file: str, answer_file: str) -> None:
    """Compare every file of a plan, and write the results."""
    plan = GgufPlan.model_validate_json(Path(plan_file).read_bytes())
    held_out = HeldOut([Encoded(ids, labels, len(ids)) for ids, labels in plan.samples], signal_progress)
    labeler = load_labeler(plan.model, plan.model.name)
    try:
        model = load_plain(plan.model, DTYPES[plan.precision], torch.device("cpu"))
        reference = keep_logprobs(iterate_logprobs(model, held_out))
        del model
        free_memory()
        results = [examine(plan, reference, labeler, file) for file in plan.files]
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    Path(answer_file).write_text(GateReply(results=results).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    run_plan(*sys.argv[1:3])
