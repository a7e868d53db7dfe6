"""The inputs of `finetune-trainer merge`: base and adapter, checked against each other, and the rows to compare on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.handoff import ADAPTER_WEIGHTS, Artifact, ExitCode
from finetune_trainer.commands.local_files import find_files
from finetune_trainer.commands.model_place import SCHEMES, ModelPlace, OpenedBase, find_model, progress_bar
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary, explain_unusable
from finetune_trainer.data.rows import BadRow, DataFormat, Rejected, Row, Source, TextRow, UnreadableFile
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.merging.tuned_folder import read_tuned
from finetune_trainer.models.adapters.factors import parse_factor
from finetune_trainer.models.adapters.fit import require_fit
from finetune_trainer.models.adapters.initial import BEYOND_LORA, name_recorded_base, read_base_digests, require_weights
from finetune_trainer.models.adapters.whole_names import saved_modules
from finetune_trainer.models.files.base_model import (
    ADAPTER_CONFIG,
    TOKENIZER,
    is_text_file,
    parse_json_file,
    read_config,
    read_header,
    refuse,
)
from finetune_trainer.models.files.context import context_length
from finetune_trainer.models.memory.shape import EMBEDDINGS, ModelShape, Tensors
from finetune_trainer.pipeline.inputs import as_text
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.hub.uris import strip_commit
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import sha256_file
from finetune_trainer.tokenization.labeler import Labeler, load_labeler
from finetune_trainer.tokenization.samples import Encoded

MOST_ROWS = 512
LONGEST = 2048
"""Tokens of a row, as in a job without `hyperparameters.maxLength`; never more than the model's context."""
MERGED_BY_PEFT = frozenset({"use_dora", "layers_to_transform", "trainable_token_indices"})
"""Settings beyond plain LoRA that PEFT merges into the weights."""
BUILT_IN = "built-in texts"
TEXTS = (
    "The pod was evicted because its node ran out of memory. The controller created another one a second later.",
    "What is 17 times 3? It is 51, because 10 times 3 is 30, 7 times 3 is 21, and 30 plus 21 is 51.",
    "def mean(values):\n    if not values:\n        return 0.0\n    return sum(values) / len(values)\n",
    '{"name": "gateway", "ports": [80, 8443], "labels": {"tier": "edge"}, "ready": true}',
    "Thank you for your message. Your order was sent on Tuesday and should arrive within three working days.",
    "Le café ouvre à huit heures du matin et ferme à minuit, sauf le dimanche et les jours fériés.",
    "Wasser siedet auf Meereshöhe bei hundert Grad Celsius, auf hohen Bergen schon bei weniger.",
    "水は零度で凍り、百度で沸騰します。山の上では、もっと低い温度で沸騰します。",
)
"""The texts to compare on if neither `--rows` nor the adapter's own result has any."""


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """An adapter on this machine: the user's name for it, its folder, the base that it names, and its content."""

    name: str
    weights: Path
    base: str | None
    config: dict[str, Any]
    tensors: Tensors

    def find(self, artifact: Artifact) -> Path | None:
        """Return a file of the result that the adapter is part of, if there is one."""
        file = self.weights.parent / artifact
        return file if self.weights.name == Artifact.ADAPTER and file.is_file() else None


@dataclass(frozen=True, slots=True)
class Compared:
    """The texts to compare on, where they are from, and the folder of the tokenizer that a merged model gets."""

    tokenizer: Path
    labeler: Labeler
    samples: Sequence[Encoded]
    source: str


def open_adapter(name: str, stop: StopFlag, directory: Path) -> LocalAdapter:
    """Return the adapter of a folder or a result; one in a store is downloaded into `directory`."""
    place = find_model(name, "ADAPTER", stop)
    folder = place.folder or _fetch_adapter(place, directory, stop)
    try:
        tuned = read_tuned(folder)
    except TrainerError as error:
        raise TrainerError(error.code, error.message.replace(str(folder), name)) from None
    if not tuned.is_adapter:
        raise InvalidConfig(f"ADAPTER {name} has a full model and no adapter: name the folder of an adapter")
    config = parse_json_file(name, ADAPTER_CONFIG, (tuned.weights / ADAPTER_CONFIG).read_bytes())
    beyond = [setting for setting in BEYOND_LORA if config.get(setting) and setting not in MERGED_BY_PEFT]
    if beyond:
        refuse(name, f"its {ADAPTER_CONFIG} sets {beyond[0]}, which a merged model cannot express: serve the adapter")
    store = LocalStore({name: tuned.weights})
    weights = next(entry for entry in store.list(name) if entry.key == ADAPTER_WEIGHTS)
    return LocalAdapter(name, tuned.weights, tuned.base, config, read_header(name, weights, store, None))


def _fetch_adapter(place: ModelPlace, directory: Path, stop: StopFlag) -> Path:
    """Download the adapter, and of a result also lineage and rows."""
    entries = place.storage.list(place.uri)
    inner = f"{Artifact.ADAPTER}/"
    prefix = inner if any(entry.key == inner + ADAPTER_CONFIG for entry in entries) else ""
    require_weights(place.uri, [entry.key.removeprefix(prefix) for entry in entries])

    def is_needed(key: str) -> bool:
        own = key.removeprefix(prefix)
        return own == ADAPTER_WEIGHTS or is_text_file(own) or key in {Artifact.TRAIN_ROWS, Artifact.VALIDATION_ROWS}

    total = sum(entry.size for entry in entries if is_needed(entry.key))
    with progress_bar("fetching the adapter", stop, total=total, unit="B") as on_bytes:
        place.storage.download_folder(place.uri, directory, on_bytes, accept=is_needed)
    return directory


def check_base(adapter: LocalAdapter, name: str, base: OpenedBase, stop: StopFlag) -> str:
    """Refuse an adapter of another base, by the sizes of the layers, the digests in its lineage and the base's name;
    return the evidence that it is its own."""
    if base.facts.shape:
        _refuse_tied(adapter, base.folder, base.facts.shape)
        rank = adapter.config.get("r")
        try:
            require_fit(adapter.name, adapter.tensors, rank if isinstance(rank, int) and rank else 1, base.facts.shape)
        except TrainerError as error:
            raise InvalidConfig(f"{error.message}: name the base that it was trained on instead of {name}") from None
    lineage = adapter.find(Artifact.LINEAGE)
    content = lineage.read_bytes() if lineage else None
    if recorded := read_base_digests(content):
        _require_digests(adapter, name, base.folder, recorded, stop, own=name_recorded_base(content))
        return "its weights have the SHA-256 in the adapter's lineage"
    if adapter.base and name.startswith(SCHEMES):
        if strip_commit(name.rstrip("/")) != adapter.base.rstrip("/"):
            raise InvalidConfig(
                f"the adapter {adapter.name} was trained on {adapter.base}, but BASE is {name}: name the adapter's own "
                f"base, or correct base_model_name_or_path in its {ADAPTER_CONFIG}"
            )
        return "it is the one that the adapter names"
    named = f"the adapter names {adapter.base}" if adapter.base else "the adapter does not name its own"
    return f"its layers have the names and sizes of the adapter's; {named}"


def _refuse_tied(adapter: LocalAdapter, base: Path, shape: ModelShape) -> None:
    """Refuse an adapter on one of two tied weights: the merge would change the other too, and with it the answers."""
    factors = (parse_factor(name) for name in adapter.tensors)
    modules = {factor.module.rpartition(".")[2] for factor in factors if factor}
    if not adapter.config.get("ensure_weight_tying"):  # otherwise PEFT trained them as one
        modules |= {module.rpartition(".")[2] for module in saved_modules(adapter.config, adapter.tensors)}
    config = read_config(base)
    text = config.get("text_config")
    tied = (text if isinstance(text, dict) else config).get("tie_word_embeddings", shape.tied)
    if tied and modules & EMBEDDINGS:
        refuse(
            adapter.name,
            f"it changes {min(modules & EMBEDDINGS)}, but input and output embeddings of the base are one tensor, so "
            "it cannot be merged: serve the adapter",
        )


def _require_digests(
    adapter: LocalAdapter, name: str, base: Path, recorded: dict[str, str], stop: StopFlag, *, own: str
) -> None:
    another = f"the adapter {adapter.name} was trained on another base than {name}"
    if missing := next((file for file in recorded if not (base / file).is_file()), None):
        raise InvalidConfig(f"{another}, which has no {missing}: name the base that it was trained on{own}")
    total = sum((base / file).stat().st_size for file in recorded)
    with progress_bar("reading the base", stop, total=total, unit="B") as on_bytes:
        for file, digest in recorded.items():
            found = sha256_file(base / file, on_bytes)
            if found != digest:
                raise InvalidConfig(
                    f"{another}: in its lineage {file} has the SHA-256 {digest[:12]}, here {found[:12]}: "
                    f"name the base that it was trained on{own}"
                )


def read_compared(adapter: LocalAdapter, base: Path, rows: str | None, *, is_asked: bool) -> Compared:
    """Return the tokenizer of the merged model, which is the adapter's if it has one, and the texts to compare on:
    those of `--rows`, else the held-out or training rows of the adapter's own result, else built-in ones."""
    tokenizer = adapter.weights if (adapter.weights / TOKENIZER).is_file() else base
    labeler = load_labeler(tokenizer, adapter.name if tokenizer == adapter.weights else "BASE")
    if not is_asked:
        return Compared(tokenizer, labeler, (), "")
    own = adapter.find(Artifact.VALIDATION_ROWS) or adapter.find(Artifact.TRAIN_ROWS)
    if rows is not None:
        read, source = _read_file(rows), rows
    elif own:
        read, source = islice(read_accepted(own), MOST_ROWS), f"the result's {own.parent.name}/{own.name}"
    else:
        texts = [TextRow(text, Source(BUILT_IN, at), DataFormat.TEXT) for at, text in enumerate(TEXTS, 1)]
        read, source = iter(texts), BUILT_IN
    longest = min(LONGEST, context_length(read_config(base)) or LONGEST)
    samples = list(_encode(list(read), labeler, longest))
    if not any(sample.trained for sample in samples):
        message = f"{source}: no row has a token to compare on: name other rows with --rows"
        raise TrainerError(ExitCode.DATASET_UNUSABLE, message)
    return Compared(tokenizer, labeler, samples, source)


def _read_file(name: str) -> Iterator[Row]:
    summary = Summary()
    try:
        files = find_files([name], []).read
        for row in check_rows(files, summary=summary, objective=None, max_samples=MOST_ROWS):
            if not isinstance(row, Rejected):
                yield row
    except UnreadableFile as error:
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"--rows: {error}") from None
    if why := explain_unusable(summary, 100):
        raise TrainerError(ExitCode.DATASET_UNUSABLE, f"--rows {name}: {why}")


def _encode(rows: Sequence[Row], labeler: Labeler, longest: int) -> Iterator[Encoded]:
    for samples in labeler.encode_batch(rows, "Chat", longest):
        if not isinstance(samples, BadRow):
            yield from (as_text(sample) for sample in samples)
