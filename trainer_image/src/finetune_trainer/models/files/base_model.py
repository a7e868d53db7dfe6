"""Checks of the base model in storage: complete, safe to load, and its number of weights, without loading them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.handoff import ExitCode, JobConfig
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.models.memory.shape import ModelShape, Tensors, names_experts, read_shape
from finetune_trainer.storage.hub.uris import parse_commit
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, join_uri
from finetune_trainer.tokenization.tokenizer import TEMPLATE_FOLDER

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
GGUF_SUFFIX = ".gguf"
HEADER_LIMIT = 32 * 1024 * 1024
JSON_LIMIT = 32 * 1024 * 1024
"""Bytes of a text that is parsed here, which takes about 20 times its length."""
TEXT_LIMIT = 256 * 1024 * 1024
MAX_TENSORS = 1_000_000
PARSED = (CONFIG, TOKENIZER_CONFIG, INDEX, "special_tokens_map.json", "added_tokens.json", "chat_template.json")
MOST_DIMENSIONS = 8
LARGEST_SIZE = 2**48
"""Bytes of a file and elements of a dimension are fewer."""
NOT_JSON = (ValueError, RecursionError)
"""Raised for a text that is not JSON, or that is nested deeper than it can be read."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Preflight's facts about the base model."""

    parameters: int
    architecture: str
    shape: ModelShape | None = None
    has_experts: bool = False


def is_model_file(key: str) -> bool:
    """Return whether a file of the model's folder is needed to load it.

    Not needed are pickles, code, second copies of the weights, and the configuration of an adapter, which transformers
    would fetch and apply unasked.
    """
    return (is_text_file(key) and key != ADAPTER_CONFIG) or is_weight_file(key)


def is_text_file(key: str) -> bool:
    """Return whether it is configuration, tokenizer or template."""
    folder, _, name = key.rpartition("/")
    return name.endswith(TEXT_SUFFIXES if not folder else ".jinja") and folder in ("", TEMPLATE_FOLDER)


def is_weight_file(key: str) -> bool:
    """Return whether it holds weights in transformers' own layout."""
    return "/" not in key and key.startswith("model") and key.endswith(".safetensors")


def list_model_files(uri: str, storage: ReadableStore) -> list[Entry]:
    """Return the files that are needed to load the model."""
    return [entry for entry in storage.list(uri) if is_model_file(entry.key)]


def pin_model(config: JobConfig, storage: ReadableStore) -> JobConfig:
    """Return the job with the current commit of the model's revision, so that every later read uses the same files."""
    model = config.spec.model
    commit = parse_commit(storage.pin(model.uri, model.revision))
    if commit is None:
        return config
    return config.with_spec(model=model.model_copy(update={"revision": commit}))


def check_model(
    uri: str, storage: ReadableStore, directory: Path, on_bytes: OnBytes | None = None, *, field: str = "spec.model"
) -> ModelFacts:
    """Check the folder and leave its text files in `directory`; the weights stay in storage, only headers are read.

    `field` is the one that names the model.
    """
    entries = {entry.key: entry for entry in storage.list(uri)}
    _check_names(uri, entries, field)
    _check_sizes(uri, entries)
    storage.download_folder(
        uri, directory, on_bytes, accept=lambda key: is_text_file(key) and entries[key].size <= TEXT_LIMIT
    )
    config, shards = check_text_files(uri, directory, entries)
    tensors: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        tensors |= read_header(uri, shard, storage, on_bytes)
        if len(tensors) > MAX_TENSORS:
            refuse(uri, f"the weights have more than {MAX_TENSORS:,} tensors: name a model that transformers can load")
    return ModelFacts(
        parameters=sum(prod(shape) for shape in tensors.values()),
        architecture=name_architecture(config),
        shape=read_shape(config, tensors),
        has_experts=names_experts(tensors),
    )


def name_architecture(config: Mapping[str, Any]) -> str:
    """Return the first architecture in a model's configuration."""
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else "unknown"


def check_text_files(uri: str, directory: Path, entries: Mapping[str, Entry]) -> tuple[dict[str, Any], list[Entry]]:
    """Refuse remote code, quantised weights and an index that names other files; return config.json and the shards."""
    config = _read_json(uri, directory / CONFIG)
    for name, content in ((CONFIG, config), (TOKENIZER_CONFIG, _read_json(uri, directory / TOKENIZER_CONFIG))):
        if content.get("auto_map"):
            refuse(uri, f"{name} requires remote code (auto_map), which is never run: use an architecture that "
                        "is built into transformers")  # fmt: skip
    if config.get("quantization_config"):
        refuse(uri, "the weights are already quantised: use the 16-bit weights, which QLoRA quantises itself")
    return config, _shards(uri, directory, entries)


def _check_names(uri: str, entries: Mapping[str, Entry], field: str) -> None:
    has_weights = WEIGHTS in entries or INDEX in entries
    if not has_weights and any(name.endswith(GGUF_SUFFIX) for name in (uri.rstrip("/"), *entries)):
        refuse(uri, "the weights exist only as GGUF, which is quantised for inference: use the original safetensors")
    if not entries:
        refuse(uri, f"there is no object under this prefix: correct {field}.uri, or upload the model's folder")
    if CONFIG not in entries:
        refuse(uri, f"there is no {CONFIG}: {field}.uri must name the folder of a model as transformers saves it")
    if not has_weights:
        if any(key.endswith(PICKLE_SUFFIXES) for key in entries):
            refuse(uri, "the weights exist only as pickle files, which can run code when loaded: "
                        "save them again with save_pretrained(…, safe_serialization=True)")  # fmt: skip
        refuse(uri, f"there are no weights: neither {WEIGHTS} nor {INDEX}")
    if TOKENIZER not in entries:
        refuse(
            uri, f"there is no {TOKENIZER}: save it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )


def _check_sizes(uri: str, entries: Mapping[str, Entry]) -> None:
    limits = {**dict.fromkeys(PARSED, JSON_LIMIT), TOKENIZER: TEXT_LIMIT}
    for name, limit in limits.items():
        if name in entries and entries[name].size > limit:
            refuse(
                uri,
                f"{name} has {entries[name].size:,} bytes, and the limit is {limit:,}: save it with save_pretrained",
            )


def _shards(uri: str, directory: Path, entries: Mapping[str, Entry]) -> list[Entry]:
    if INDEX not in entries:
        return [entries[WEIGHTS]]
    weight_map = _read_json(uri, directory / INDEX).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    missing = [name for name in names if name not in entries]
    others = [name for name in names if not is_weight_file(name)]
    if others:
        refuse(uri, f"{INDEX} names weights that are not model*.safetensors: {', '.join(others[:5])}")
    if WEIGHTS in entries:  # transformers then reads no index, which may be of an older upload
        return [entries[WEIGHTS]]
    if missing or not names:
        refuse(uri, f"weights that {INDEX} names are missing: {', '.join(missing[:5]) or 'it names none'}")
    return [entries[name] for name in names]


def read_header(uri: str, shard: Entry, storage: ReadableStore, on_bytes: OnBytes | None) -> Tensors:
    """Return the shape of every tensor in one file, from its header; a truncated file is refused."""
    where = join_uri(uri, shard.key)
    try:
        length = int.from_bytes(storage.read_range(where, 0, 8), "little")
        if HEADER_LIMIT < length <= shard.size - 8:
            refuse(uri, f"the header of {shard.key} has {length:,} bytes, and the limit is {HEADER_LIMIT:,}: save the "
                        "weights in several files")  # fmt: skip
        if not 2 <= length <= shard.size - 8:
            refuse(uri, f"{shard.key} is not a safetensors file")
        header = json.loads(storage.read_range(where, 8, length))
        header.pop("__metadata__", None)
        end = max((_count(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        tensors = {str(name): _shape(tensor["shape"]) for name, tensor in header.items()}
    except ObjectMissing:
        refuse(uri, f"{shard.key} was deleted while it was read")
    except (*NOT_JSON, KeyError, TypeError, IndexError, AttributeError):
        refuse(uri, f"the header of {shard.key} cannot be read: it is not a safetensors file")
    if 8 + length + end != shard.size:
        refuse(
            uri, f"{shard.key} has {shard.size} bytes instead of the {8 + length + end} of its header: upload it again"
        )
    if on_bytes:
        on_bytes(length)
    return tensors


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    if len(sizes) > MOST_DIMENSIONS:
        raise ValueError(sizes)
    return tuple(_count(size) for size in sizes)


def _count(value: Any) -> int:
    """Return a number of bytes or of elements; JSON also has infinity, fractions and numbers of any length."""
    if type(value) is not int or not 0 <= value < LARGEST_SIZE:
        raise ValueError(value)
    return int(value)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a model in a local folder."""
    return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


def _read_json(uri: str, path: Path) -> dict[str, Any]:
    return parse_json_file(uri, path.name, path.read_bytes()) if path.is_file() else {}


def parse_json_file(uri: str, name: str, data: bytes) -> dict[str, Any]:
    """Return the JSON object in one of the folder's files; anything else is refused."""
    try:
        content = json.loads(data.decode())
    except NOT_JSON:
        content = None
    if not isinstance(content, dict):
        refuse(uri, f"{name} is not a JSON object")
    return content


def refuse(uri: str, why: str) -> NoReturn:
    """Raise the error of a model or adapter that cannot be used."""
    raise TrainerError(ExitCode.MODEL_UNAVAILABLE, f"{uri}: {why}")
