"""The GGUF files: made from the full model, compared with it, and published if they are close to it."""

import shutil
import time
from dataclasses import replace

from finetune_api.handoff import Artifact
from finetune_api.objectives import Objective
from finetune_trainer.evaluation.gate_rules import MergeCheck
from finetune_trainer.evaluation.gguf_rules import GgufCheck, find_gguf_faults
from finetune_trainer.merging.gate import GateNotRun
from finetune_trainer.merging.gguf import make_files
from finetune_trainer.merging.gguf_messages import GgufFile, GgufPlan
from finetune_trainer.merging.modelfile import build_modelfile, find_turns
from finetune_trainer.merging.worker_process import Watch
from finetune_trainer.pipeline.finalize import TrainingResult
from finetune_trainer.pipeline.full_model import JUDGED_ROWS, asked_answers
from finetune_trainer.pipeline.inputs import Inputs

MODELFILE = "Modelfile"
SAME = {"BF16": "BF16", "FP16": "F16"}
"""The types that are the full model's own number format."""


def make_gguf(inputs: Inputs, trained: TrainingResult, full: object) -> GgufCheck | None:
    """Write `gguf/` if it is requested; a file that differs too much from the full model is left out."""
    types = inputs.run.config.spec.output.gguf
    if not types or not isinstance(full, MergeCheck):
        return None
    if full.chosen is None:
        return GgufCheck([], [], "they are made from the full model, which is withheld")
    began, run = time.monotonic(), inputs.run
    run.reporter.set_stage("Merging")
    plan = _build_plan(inputs, trained, full.precision)
    try:
        seen = make_files(plan, Watch(run.workspace, run.reporter.beat, run.stop))
        check = GgufCheck(seen, [find_gguf_faults(one, full.chosen.answers) for one in seen])
    except GateNotRun as why:
        check = GgufCheck([], [], str(why))
    _remove_unpublished(plan, check)
    if check.published:
        text = _build_modelfile(inputs, trained, f"model-{check.published[0].name}.gguf")
        (inputs.result / Artifact.GGUF / MODELFILE).write_text(text, encoding="utf-8")
    return replace(check, seconds=time.monotonic() - began)


def _build_plan(inputs: Inputs, trained: TrainingResult, precision: str) -> GgufPlan:
    """Return the files to make in a new folder; the first conversion is one of them, if that type is requested."""
    folder, spec = inputs.result / Artifact.GGUF, inputs.run.config.spec
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = [GgufFile(type=one, path=folder / f"model-{one}.gguf") for one in spec.output.gguf or []]
    own = next((file for file in files if SAME.get(precision) == file.type), None)
    return GgufPlan(
        model=inputs.result / Artifact.MERGED,
        precision=precision,
        converted=own or GgufFile(type=precision, path=inputs.run.workspace / "converted.gguf"),
        files=files,
        samples=[(list(one.input_ids), list(one.labels)) for one in inputs.held_out(JUDGED_ROWS)],
        prompts=[answer.turns for answer in asked_answers(trained)],
        stop_ids=trained.stop_ids,
        max_new_tokens=spec.evaluation.max_new_tokens,
    )


def _remove_unpublished(plan: GgufPlan, check: GgufCheck) -> None:
    published = {one.name for one in check.published}
    for file in (plan.converted, *plan.files):
        if file.type not in published or file not in plan.files:
            file.path.unlink(missing_ok=True)
    if not published:
        plan.files[0].path.parent.rmdir()


def _build_modelfile(inputs: Inputs, trained: TrainingResult, file: str) -> str:
    labeler = inputs.labeler
    is_chat = inputs.run.config.spec.objective is not Objective.DOMAIN_ADAPTATION
    turns = find_turns(lambda messages: labeler.render_prompt(messages)[0], labeler.added_bos) if is_chat else None
    stops = [labeler.tokenizer.id_to_token(token) or "" for token in trained.stop_ids]
    return build_modelfile(file, turns, [stop for stop in stops if stop], is_chat=is_chat)
