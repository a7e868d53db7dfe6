"""The adapter from which a job continues: found, checked against job and model, and fetched; without torch."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from finetune_api.handoff import ADAPTER_WEIGHTS, Artifact, JobConfig
from finetune_api.spec import FineTuneJobSpec, Lora
from finetune_trainer.errors import InvalidConfig, ObjectMissing, StorageUnavailable, TrainerError
from finetune_trainer.models.adapters.factors import Factor, are_of_experts, find_rank, parse_factor
from finetune_trainer.models.adapters.fit import require_fit
from finetune_trainer.models.adapters.patterns import matches, require_one_value
from finetune_trainer.models.adapters.whole_names import agree, is_of_module, saved_modules
from finetune_trainer.models.files.base_model import (
    ADAPTER_CONFIG,
    PICKLE_SUFFIXES,
    is_weight_file,
    parse_json_file,
    read_header,
    refuse,
)
from finetune_trainer.models.memory.shape import ModelShape, Tensors
from finetune_trainer.publishing.parent_result import read_parent_result
from finetune_trainer.storage.hub.uris import SCHEME, pinned_model_uri
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, join_uri, sha256_file

BEYOND_LORA = (
    "use_dora", "use_qalora", "use_bdlora", "layers_to_transform", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
"""Settings of PEFT that change an adapter's meaning and that a job cannot express.

So do `target_parameters` other than those of experts, and a `rank_pattern` or `alpha_pattern` with experts.
`exclude_modules` is none of them: which modules have factors is compared tensor by tensor.
"""
PATTERNS = ("rank_pattern", "alpha_pattern")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base unchanged; the others train against altered base weights."""
FIELDS = {
    "rank": "rank",
    "alpha": "alpha",
    "rank_pattern": "rankPattern",
    "alpha_pattern": "alphaPattern",
    "use_rslora": "useRslora",
    "use_dora": "useDora",
    "target_experts": "targetExperts",
}
"""Settings that an adapter determines, by field and by name in the spec; target modules are compared as a set."""
OF_A_TRAINING = ("dropout", "lora_plus_lr_ratio", "exclude_modules", "shard_base")
"""Settings that are not an adapter's. What is excluded must be what the adapter leaves out: each factor is compared."""


@dataclass(frozen=True, slots=True)
class InitialAdapter:
    """An adapter to continue from; `sha256` is that of its weights, `config_sha256` that of its configuration."""

    uri: str
    lora: Lora
    tensors: Tensors
    config_sha256: str
    sha256: str = ""
    lineage: bytes | None = None
    """The `lineage.json` of the result that it is part of, if it is part of one."""

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each of its files."""
        return {ADAPTER_CONFIG: self.config_sha256, ADAPTER_WEIGHTS: self.sha256}


def check_initial_adapter(
    config: JobConfig, shape: ModelShape | None, storage: ReadableStore, on_bytes: OnBytes
) -> InitialAdapter | None:
    """Check the adapter that the job names, if any; the weights stay in storage and are read once."""
    found = _find(config, storage, on_bytes)
    if found is None:
        return None
    adapter, expected = found
    if shape is not None:
        require_fit(adapter.uri, adapter.tensors, adapter.lora.rank or 1, shape)
    return _with_digest(adapter, storage.sha256(join_uri(adapter.uri, ADAPTER_WEIGHTS), on_bytes), expected)


def fetch_initial_adapter(
    config: JobConfig, storage: ReadableStore, directory: Path, on_bytes: OnBytes
) -> InitialAdapter | None:
    """Check the adapter that the job names again, and download its weights into `directory`."""
    found = _find(config, storage, on_bytes)
    if found is None:
        return None
    adapter, expected = found
    directory.mkdir(parents=True, exist_ok=True)
    storage.download(join_uri(adapter.uri, ADAPTER_WEIGHTS), directory / ADAPTER_WEIGHTS, on_bytes)
    return _with_digest(adapter, sha256_file(directory / ADAPTER_WEIGHTS), expected)


def require_own_weights(adapter: InitialAdapter, model: str, found: Mapping[str, str]) -> None:
    """Refuse an adapter if a file of its base's weights has another digest than its lineage records: the name stays
    when the files under it are replaced, or a branch of a hub moves on. `found` has the digests that are known."""
    for name, digest in read_base_digests(adapter.lineage).items():
        if found.get(name, digest) != digest:
            raise InvalidConfig(
                f"the adapter {adapter.uri} was trained on other weights than those of {model}: in its lineage {name} "
                f"has the SHA-256 {digest[:12]}, here {found[name][:12]}: name the base that it was trained on"
                f"{name_recorded_base(adapter.lineage)}"
            )


def with_adapter(spec: FineTuneJobSpec, adapter: InitialAdapter | None) -> FineTuneJobSpec:
    """Return the spec with the adapter's settings, except for those of the training alone, which are the job's."""
    if adapter is None:
        return spec
    own = spec.tuning.lora or Lora()
    lora = adapter.lora.model_copy(update={name: getattr(own, name) for name in OF_A_TRAINING})
    return spec.model_copy(update={"tuning": spec.tuning.model_copy(update={"lora": lora})})


def _find(
    config: JobConfig, storage: ReadableStore, on_bytes: OnBytes
) -> tuple[InitialAdapter, Mapping[str, str]] | None:
    """Return the adapter without its digest, and the digests of its files in the parent's manifest."""
    asked = config.spec.tuning.initial_adapter
    if asked is None:
        return None
    expected: Mapping[str, str] = {}
    if asked.uri is not None:
        uri = storage.pin(asked.uri.rstrip("/"))
    else:
        uri, expected = _find_at_parent(config, storage)
    entries = {entry.key: entry for entry in storage.list(uri)}
    raw, config_sha256 = _read_config(uri, entries, storage, expected)
    require_weights(uri, entries)
    tensors = read_header(uri, entries[ADAPTER_WEIGHTS], storage, on_bytes)
    lineage = _read_lineage(uri, storage)
    if not _names_base(raw, config.spec) and not _is_made_on(lineage, config.spec, storage, on_bytes):
        _refuse_base(uri, raw, config.spec)
    lora = _check_kind(uri, raw, tensors)
    _check_agreement(uri, config.spec.tuning.lora or Lora(), lora, is_tied=bool(raw.get("ensure_weight_tying")))
    adapter = InitialAdapter(uri, lora, tensors, config_sha256, lineage=lineage)
    base = pinned_model_uri(config.spec.model)
    require_own_weights(adapter, base, {one.key: one.sha256 for one in storage.list(base) if one.sha256})
    return adapter, expected


def _read_lineage(uri: str, storage: ReadableStore) -> bytes | None:
    """Return the lineage of the result that an adapter is part of, by the names of its folders; None if it is part of
    none, or if the job may read the adapter alone, or this machine, to which nothing else of the result is mapped."""
    result = uri.partition(f"/{Artifact.KEPT}/")[0].removesuffix(f"/{Artifact.ADAPTER}")
    try:
        return None if uri.startswith(SCHEME) else storage.read(join_uri(result, Artifact.LINEAGE))
    except StorageUnavailable:
        raise
    except (TrainerError, LookupError):  # the latter of a local store
        return None


def _find_at_parent(config: JobConfig, storage: ReadableStore) -> tuple[str, Mapping[str, str]]:
    """Return the folder of the parent's adapter and its digests, from the manifest that the operator observed."""
    parent = config.parent
    if parent is None:
        raise InvalidConfig(
            "tuning.initialAdapter.fromParent needs the operator to find the parent: "
            "name the adapter with tuning.initialAdapter.uri"
        )
    digests = read_parent_result(parent, storage).folder_digests(Artifact.ADAPTER)
    if not digests:
        raise InvalidConfig(f"{parent.name} published no adapter: remove tuning.initialAdapter, or name another parent")
    return join_uri(parent.output_uri, Artifact.ADAPTER), digests


def _read_config(
    uri: str, entries: Mapping[str, Entry], storage: ReadableStore, expected: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    data = storage.read(join_uri(uri, ADAPTER_CONFIG)) if ADAPTER_CONFIG in entries else None
    if data is None:
        refuse(
            uri,
            f"there is no {ADAPTER_CONFIG}: tuning.initialAdapter must name the folder of an adapter as PEFT saves it",
        )
    digest = hashlib.sha256(data).hexdigest()
    _require_digest(uri, ADAPTER_CONFIG, digest, expected)
    return parse_json_file(uri, ADAPTER_CONFIG, data), digest


def require_weights(uri: str, keys: Collection[str]) -> None:
    """Refuse a folder of an adapter without weights that are safe to load."""
    if ADAPTER_WEIGHTS in keys:
        return
    if any(key.endswith(PICKLE_SUFFIXES) for key in keys):
        refuse(uri, "the adapter exists only as a pickle file, which can run code when loaded: save it again "
                    "with save_pretrained(…)")  # fmt: skip
    refuse(uri, f"there is no {ADAPTER_WEIGHTS}")


def _names_base(raw: Mapping[str, Any], spec: FineTuneJobSpec) -> bool:
    return _name(str(raw.get("base_model_name_or_path") or "")) == _name(spec.model.uri)


def _refuse_base(uri: str, raw: Mapping[str, Any], spec: FineTuneJobSpec) -> NoReturn:
    """Refuse an adapter of another base: it would produce noise."""
    named = str(raw.get("base_model_name_or_path") or "")
    raise InvalidConfig(
        f"the adapter {uri} was trained on {named or 'a base that its config does not name'}, but spec.model.uri is "
        f"{spec.model.uri}: name the adapter's own base, or correct base_model_name_or_path in its {ADAPTER_CONFIG}"
    )


def _name(uri: str) -> str:
    """Return the URI without the scheme of a hub, which PEFT omits."""
    return uri.removeprefix(SCHEME).rstrip("/")


def _is_made_on(lineage: bytes | None, spec: FineTuneJobSpec, storage: ReadableStore, on_bytes: OnBytes | None) -> bool:
    """Return whether the adapter's published lineage has the digests of this model's weights: a copy of the base."""
    digests = read_base_digests(lineage)
    base = pinned_model_uri(spec.model)
    try:
        return bool(digests) and all(
            storage.sha256(join_uri(base, name), on_bytes) == digest for name, digest in digests.items()
        )
    except ObjectMissing:
        return False


def read_base_digests(lineage: bytes | None) -> dict[str, str]:
    """Return the SHA-256 of each file of the base's weights that a `lineage.json` records; none if it has none."""
    try:
        files = json.loads(lineage or "{}")["baseModel"]["files"]
        return {str(name): str(digest) for name, digest in files.items() if is_weight_file(str(name))}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def name_recorded_base(lineage: bytes | None) -> str:
    """Return the end of a sentence with the base that a lineage names, with its commit; empty if it names none."""
    base = json.loads(lineage or b"{}")["baseModel"]
    commit = f"@{base['revision']}" if base.get("revision") else ""
    return f", {base['uri']}{commit}" if base.get("uri") else ""


def _check_kind(uri: str, raw: Mapping[str, Any], tensors: Tensors) -> Lora:
    """Refuse all but plain LoRA on a language model: anything more would be lost silently."""
    if raw.get("peft_type") != "LORA":
        raise InvalidConfig(f"the adapter {uri} is of type {raw.get('peft_type')}, but only LORA can be continued")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidConfig(f"the adapter {uri} is for task {raw['task_type']}, but only CAUSAL_LM can be continued")
    whole = saved_modules(raw, tensors)
    factors = {name: parse_factor(name) for name in tensors if not is_of_module(name, whole)}
    has_experts = any(factor.is_of_experts for factor in factors.values() if factor)
    modules = {factor.module for factor in factors.values() if factor}
    ranks, alphas = (_read_patterns(uri, raw, name, modules) for name in PATTERNS)
    beyond = [name for name in BEYOND_LORA if raw.get(name)]
    beyond += _find_unusual(raw, tensors, factors, whole, has_experts=has_experts)
    if beyond:
        raise InvalidConfig(f"the adapter {uri} uses more than plain LoRA ({beyond[0]}) and cannot be continued")
    linear = {factor.module for factor in factors.values() if factor and not factor.is_of_experts}
    values = {
        "rank": raw.get("r"),
        "alpha": raw.get("lora_alpha"),
        "rankPattern": ranks,
        "alphaPattern": alphas,
        "useRslora": bool(raw.get("use_rslora")),
        "targetModules": sorted({module.rpartition(".")[2] for module in linear}),
        "targetExperts": has_experts,
        "modulesToSave": sorted(whole) or None,
    }
    try:
        lora = Lora.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InvalidConfig(
            f"the adapter {uri} cannot be continued: its {fault['loc'][0]} is invalid ({fault['msg']})"
        ) from None
    require_one_value(lora, sorted(modules), f"the adapter {uri} cannot be continued: its ")
    return lora


def _find_unusual(
    raw: Mapping[str, Any],
    tensors: Tensors,
    factors: Mapping[str, Factor | None],
    whole: Collection[str],
    *,
    has_experts: bool,
) -> Iterator[str]:
    """Yield values of settings that a job can express, and tensors, which plain LoRA does not have."""
    if raw.get("init_lora_weights", True) not in PLAIN_STARTS:
        yield f"init_lora_weights {raw['init_lora_weights']}"
    yield from (name for name, factor in factors.items() if factor is None)
    if raw.get("modules_to_save") and not whole:
        yield "modules_to_save"
    named = raw.get("target_parameters") or []
    if not are_of_experts(named) or has_experts != bool(named):
        yield "target_parameters"
    yield from (name for name in PATTERNS if has_experts and raw.get(name))
    if not all(factor.has_rank(tensors[name], find_rank(raw, factor)) for name, factor in factors.items() if factor):
        yield "rank_pattern"


def _read_patterns(uri: str, raw: Mapping[str, Any], name: str, modules: Iterable[str]) -> dict[str, Any] | None:
    """Return the patterns that match a module of the adapter, as PEFT ignores the others; None without any."""
    patterns = raw.get(name) or {}
    if not isinstance(patterns, dict):
        raise InvalidConfig(f"the adapter {uri} cannot be continued: its {name} is not a map")
    return {key: value for key, value in patterns.items() if any(matches(key, one) for one in modules)} or None


def _check_agreement(uri: str, asked: Lora, adapter: Lora, *, is_tied: bool) -> None:
    """Refuse settings of the job that differ from the adapter's."""
    pairs = [(name, getattr(asked, ours), getattr(adapter, ours)) for ours, name in FIELDS.items()]
    wanted = sorted(asked.target_modules) if asked.target_modules else None
    for name, requested, actual in [*pairs, ("targetModules", wanted, adapter.target_modules)]:
        if requested is not None and requested != actual:
            raise InvalidConfig(
                f"tuning.lora.{name} is {_shown(requested)}, but the adapter {uri} has {_shown(actual, name)}: "
                f"remove tuning.lora.{name}"
            )
    if asked.modules_to_save and not agree(asked.modules_to_save, adapter.modules_to_save or [], is_tied=is_tied):
        raise InvalidConfig(
            f"tuning.lora.modulesToSave is {_shown(asked.modules_to_save)}, but the adapter {uri} has "
            f"{_shown(adapter.modules_to_save or ['none'])}: remove tuning.lora.modulesToSave"
        )
    if asked.shard_base and (adapter.target_experts or adapter.modules_to_save):
        raise InvalidConfig(
            f"tuning.lora.shardBase is for plain adapters, but the adapter {uri} has whole modules or experts: remove "
            "tuning.lora.shardBase"
        )
    if adapter.target_experts and asked.dropout:
        raise InvalidConfig(
            f"tuning.lora.dropout is {_shown(asked.dropout)}, but the adapter {uri} is also on experts, which have "
            "none: remove tuning.lora.dropout"
        )


def _shown(value: object, name: str = "") -> str:
    if value is None:  # a switch that is off, or no patterns
        return "none" if name.endswith("Pattern") else "false"
    return ", ".join(value) if isinstance(value, list) else json.dumps(value)


def _with_digest(adapter: InitialAdapter, sha256: str, expected: Mapping[str, str]) -> InitialAdapter:
    _require_digest(adapter.uri, ADAPTER_WEIGHTS, sha256, expected)
    return replace(adapter, sha256=sha256)


def _require_digest(uri: str, name: str, found: str, expected: Mapping[str, str]) -> None:
    """Refuse a file of a parent's adapter whose digest is not the one in its manifest."""
    if expected and found != expected.get(name):
        digests = f"{found} instead of {expected.get(name)}"
        refuse(uri, f"{name} does not match its SHA-256 in the manifest ({digests})")
