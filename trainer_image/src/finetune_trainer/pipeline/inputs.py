"""The inputs of a training run: the model's folder, the verified rows, and their samples."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from finetune_api.comparing.groups import EVALUATED_PROMPTS, EVALUATED_ROWS
from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.objectives import Objective
from finetune_api.spec import Method
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.data.ability import Question as AbilityQuestion
from finetune_trainer.data.ability import read_questions
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.expectations import Expectations
from finetune_trainer.evaluation.questions import Question, list_questions
from finetune_trainer.evaluation.run_record import Licence
from finetune_trainer.merging.converter import require_converter
from finetune_trainer.models.adapters.initial import (
    InitialAdapter,
    fetch_initial_adapter,
    require_own_weights,
    with_adapter,
)
from finetune_trainer.models.files.bound_model import fetch_as_checked, require_adapter_as_checked
from finetune_trainer.models.files.cache import pin_as_checked
from finetune_trainer.models.files.model_card import read_licence
from finetune_trainer.models.files.teacher import TeacherFiles, fetch_teacher, pin_teacher
from finetune_trainer.pipeline.chat_template import restore_choice
from finetune_trainer.pipeline.dataset import Rows, choose_evaluation_rows, fetch_rows, load_held_out, load_samples
from finetune_trainer.pipeline.held_out_answers import list_counted_rows
from finetune_trainer.publishing.lineage import combined_sha256, digest_folder
from finetune_trainer.publishing.parent_result import check_parents
from finetune_trainer.rewards.fetch import RewardFolders, fetch_reward_model
from finetune_trainer.storage.hub.uris import pinned_model_uri
from finetune_trainer.tokenization.labeler import Labeler, load_labeler
from finetune_trainer.tokenization.samples import (
    UNTRAINED,
    Encoded,
    EncodedLabelled,
    EncodedPair,
    EncodedPrompt,
    Sample,
)
from finetune_trainer.tokenization.token_file import TokenOrigin

SHOWN_SAMPLES = 3


@dataclass(frozen=True)
class Inputs:
    """The run with its model and rows."""

    run: RunContext
    """Its configuration names the commits that were loaded."""
    model: Path
    rows: Rows
    labeler: Labeler
    train: Sequence[Sample]
    validation: Sequence[Sample]
    initial_adapter: InitialAdapter | None = None
    reward: RewardFolders | None = None
    teacher: TeacherFiles | None = None
    model_files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the base model when it was loaded."""
    licence: Licence | None = None
    """The licence in the base model's card."""

    @property
    def base_sha256(self) -> str:
        """One SHA-256 over the base model's files."""
        return combined_sha256(self.model_files)

    @property
    def result(self) -> Path:
        """The local folder that is published."""
        return self.run.workspace / "result"

    @property
    def best_weights(self) -> Path:
        """The file of the trained weights of the best evaluation, or of the last step if nothing is evaluated."""
        return self.run.workspace / "best.safetensors"

    @property
    def initial_weights(self) -> Path:
        """The folder of the adapter to continue from."""
        return self.run.workspace / "initial-adapter"

    def held_out(self, count: int) -> list[Encoded]:
        """Return the texts on which a saved model is compared, at most `count`."""
        return [as_text(sample) for sample in (self.validation or self.train)[:count]]

    @property
    def shown(self) -> Sequence[Sample]:
        """The samples that the report shows with the model's output."""
        return (self.validation or self.train)[:SHOWN_SAMPLES]

    @cached_property
    def questions(self) -> list[Question]:
        """The prompts to answer before and after the training; none for a model that writes no text."""
        spec = self.run.config.spec
        if spec.objective == Objective.REWARD_MODEL:
            return []
        held_out = self.rows.validation or ()
        return [*list_questions(spec.prompts, held_out), *list_counted_rows(spec, held_out)]

    @property
    def questions_sha256(self) -> str:
        """The digest of these prompts."""
        turns = [question.turns for question in self.questions]
        return hashlib.sha256(json.dumps(turns, sort_keys=True).encode()).hexdigest()

    @cached_property
    def ability_questions(self) -> list[AbilityQuestion]:
        """The questions on general ability to answer before and after the training."""
        return list(read_questions(self.rows.ability)) if self.rows.ability else []

    @property
    def answers(self) -> Iterator[Encoded]:
        """The training rows with an answer to imitate."""
        has_none = isinstance(self.train[0], EncodedPrompt)
        return iter(()) if has_none else map(as_text, self.train)


def load_inputs(run: RunContext, *, digests_models: bool = True) -> Inputs:
    """Download models and rows, verify rows and tokens against preflight's digests.

    Without `digests_models` the digests of base model and teacher are left to another process of the pod, see
    `share_digests`.
    """
    config, storage, workspace, on_bytes = run.config, run.storage, run.workspace, run.on_bytes
    if config.spec.output.gguf:
        require_converter()
    Expectations(config.spec.evaluation.prompts or [])  # the prompts may have changed since preflight
    shutil.rmtree(workspace / "result", ignore_errors=True)
    check_parents(config, storage)
    rows = fetch_rows(config, storage, workspace, on_bytes)
    config = pin_as_checked(config, rows.summary.get("model") or {}, storage)
    model = fetch_as_checked(config, rows.summary.get("model") or {}, storage, workspace / "model", on_bytes)
    adapter = fetch_initial_adapter(config, storage, workspace / "initial-adapter", on_bytes)
    if adapter:
        require_adapter_as_checked(adapter, rows.summary.get("initialAdapter") or {})
    config = _with_patterns(config, adapter)
    checked = rows.summary.get("rewardModel") or {}
    reward = fetch_reward_model(config, storage, workspace, model, on_bytes, checked=checked)
    teacher = None
    if found := fetch_teacher(config, rows.summary.get("teacher") or {}, storage, workspace / "teacher", on_bytes):
        teacher = TeacherFiles(*found, digest_folder(found[1], on_bytes) if digests_models else {})
        config = pin_teacher(config, teacher.model)
    licence = read_licence(pinned_model_uri(config.spec.model), storage)
    run.reporter.start.end("download")
    labeler = load_labeler(model, config.spec.model.uri, restore_choice(config, rows.template))
    hyper = config.spec.hyperparameters
    origin = TokenOrigin.of(labeler, config.spec.labelled_as, hyper.max_length)
    samples = load_samples(rows.train, labeler, origin, run.on_work)
    validation: Sequence[Sample] = ()
    if rows.validation:
        most = EVALUATED_PROMPTS if teacher else EVALUATED_ROWS
        chosen = choose_evaluation_rows(len(rows.validation), hyper.seed, most)
        validation = load_held_out(rows.validation, labeler, origin, run.on_work, chosen)
    if not samples:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, "no row has a token to train on: see status.dataset")
    run.reporter.start.end("rows")
    files = digest_folder(model, on_bytes) if digests_models else {}
    run.reporter.start.end("digests")
    if adapter:
        require_own_weights(adapter, pinned_model_uri(config.spec.model), files)
    run = replace(run, config=config)
    return Inputs(run, model, rows, labeler, samples, validation, adapter, reward, teacher, files, licence)


def _with_patterns(config: JobConfig, adapter: InitialAdapter | None) -> JobConfig:
    """Return the configuration with the patterns of spec or adapter: they may be too long for preflight's report."""
    lora, resolved = with_adapter(config.spec, adapter).tuning.lora, config.resolved
    if lora is None or resolved is None or resolved.method == Method.FULL:
        return config
    patterns = {"rank_pattern": lora.rank_pattern, "alpha_pattern": lora.alpha_pattern}
    return config.model_copy(update={"resolved": resolved.model_copy(update=patterns)})


def share_digests(inputs: Inputs, gather: Callable[[bytes], list[bytes]]) -> Inputs:
    """Return the inputs with the digests of base model and teacher that one process of each pod took.

    `gather` returns every process's bytes. Raise if the pods loaded different files.
    """
    own = {"base model": dict(inputs.model_files), "teacher": dict(inputs.teacher.digests) if inputs.teacher else {}}
    found = [json.loads(one) for one in gather(json.dumps(own).encode())]
    for name, first in found[0].items():
        for rank, files in enumerate(one[name] for one in found):
            other = sorted(path for path in files.keys() | first.keys() if files.get(path) != first.get(path))
            if files and other:
                problem = f"rank {rank} loaded other files of the {name} than rank 0, for example {other[0]}"
                raise TrainerError(ExitCode.INTERNAL_ERROR, f"{problem}: check whether the model is being changed")
    teacher = inputs.teacher and replace(inputs.teacher, digests=found[0]["teacher"])
    return replace(inputs, model_files=found[0]["base model"], teacher=teacher)


def as_text(sample: Sample) -> Encoded:
    """Return the sample as one text whose (chosen) answer is labelled; of a prompt, everything is labelled."""
    match sample:
        case EncodedPair():
            return _text(sample.prompt_ids, sample.chosen_ids, sample)
        case EncodedLabelled():
            return _text(sample.prompt_ids, sample.completion_ids, sample)
        case EncodedPrompt():
            return _text([], sample.prompt_ids, sample)
        case _:
            return sample


def _text(prompt: list[int], answer: list[int], sample: Sample) -> Encoded:
    labels = [UNTRAINED] * len(prompt) + answer
    return Encoded(prompt + answer, labels, len(answer), truncated=sample.truncated)
