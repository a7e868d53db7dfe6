"""A FineTuneJob manifest read without a cluster: the same types, the same rules, errors named by field."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from finetune_api import names
from finetune_api.handoff import JobConfig, config_sha256
from finetune_api.manifest.foreign_names import explain_foreign
from finetune_api.manifest.former_names import current_name
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.manifest.yaml_document import FileError, YamlDocument, drop_nulls, join_path, read_stream, read_text
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import InvalidConfig

MAX_ERRORS = 10


def read_manifest(path: Path, uid: str) -> JobConfig:
    """Return the one job in a manifest, as a pod would get it; raises InvalidConfig naming each wrong field."""
    jobs = read_manifests(path, lambda: uid)
    if len(jobs) != 1:
        raise InvalidConfig(f"{path}: contains {len(jobs)} objects, but must contain one {names.KIND}")
    return jobs[0]


def read_manifests(path: Path, make_uid: Callable[[], str]) -> list[JobConfig]:
    """Return every job in a manifest, in their order; raises InvalidConfig that names every fault."""
    documents, faults = _read(path)
    config_maps = _config_maps(documents)
    jobs: list[JobConfig] = []
    for document in documents:
        if _is_config_map(document):
            continue
        job, wrong = _job(document, make_uid())
        jobs += [job.model_copy(update={"config_maps": config_maps})] if job else []
        faults += wrong
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    faults += [f"contains more than one {names.KIND} named {name}" for name in twice]
    if faults:
        raise InvalidConfig(f"{path}: {join_faults(faults)}")
    return jobs


def _is_config_map(document: YamlDocument) -> bool:
    return (document.value.get("apiVersion"), document.value.get("kind")) == ("v1", "ConfigMap")


def _config_maps(documents: list[YamlDocument]) -> dict[str, dict[str, str]]:
    """Return the texts of the file's ConfigMaps, by name and key."""
    found: dict[str, dict[str, str]] = {}
    for document in filter(_is_config_map, documents):
        metadata, data = document.value.get("metadata"), document.value.get("data")
        if isinstance(metadata, dict) and isinstance(data, dict):
            texts = {str(key): text for key, text in data.items() if isinstance(text, str)}
            found[str(metadata.get("name"))] = texts
    return found


def _job(document: YamlDocument, uid: str) -> tuple[JobConfig | None, list[str]]:
    """Return the job of a document, or its faults."""
    job, metadata = document.value, document.value.get("metadata")
    faults = [
        f"{key} must be {wanted}, not {job.get(key)!r}"
        for key, wanted in (("apiVersion", names.API_VERSION), ("kind", names.KIND))
        if job.get(key) != wanted
    ]
    faults += [
        f"line {document.line(field)}: {join_path((*document.path, *field))} is given twice"
        for field in document.duplicates
    ]
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        faults.append("metadata.name is missing")
    root = join_path((*document.path, "spec"))
    spec, wrong = _parse(drop_nulls(job.get("spec")), root)
    if spec is None or faults or wrong:
        return None, faults + wrong
    config = JobConfig(
        namespace=str(metadata.get("namespace") or "default"),
        name=metadata["name"],
        uid=uid,
        config_sha256=config_sha256(spec),
        spec=spec,
        simulated_gpus=True,  # a local run uses what the machine has
        is_local=True,
    )
    return config, []


def parse_spec(content: object, path: Path) -> FineTuneJobSpec:
    """Return the spec, validated like in the API server."""
    spec, faults = _parse(content, "spec")
    if spec is None or faults:
        raise InvalidConfig(f"{path}: {join_faults(faults)}")
    return spec


def join_faults(faults: list[str]) -> str:
    """Return the first faults on one line, and how many follow."""
    more = [f"and {len(faults) - MAX_ERRORS} more"] if len(faults) > MAX_ERRORS else []
    return "; ".join([*faults[:MAX_ERRORS], *more])


def _parse(content: object, root: str) -> tuple[FineTuneJobSpec | None, list[str]]:
    """Return the spec, and its faults; the rules between fields are checked if every field is valid."""
    try:
        spec = FineTuneJobSpec.model_validate(content)
    except ValidationError as error:
        return None, field_errors(error, root)
    return spec, [one.text().replace("spec", root, 1) for one in broken_rules(spec)]


def field_errors(error: ValidationError, root: str) -> list[str]:
    """One line per wrong field, with its path; the value is left out where it could be long."""
    lines = []
    for one in error.errors(include_url=False):
        what = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            what = ": ".join(["unknown field", *filter(None, [_explain_name(one["loc"])])])
        lines.append(f"{join_path((root, *one['loc']))}: {what}")
    return lines


def _explain_name(place: tuple[int | str, ...]) -> str:
    """Return what a field that does not exist is called, if it has a former name or one of another project."""
    name = current_name(("spec", *place))
    return f"it is called {name} now" if name else explain_foreign(str(place[-1]))


def _read(path: Path) -> tuple[list[YamlDocument], list[str]]:
    """Return the objects of a file, and the faults of its YAML."""
    try:
        documents, faults = read_stream(read_text(path))
    except FileError as error:
        raise InvalidConfig(str(error)) from None
    found = [one for document in documents for one in document.objects() if isinstance(one.value, dict)]
    if not found and not faults:
        raise InvalidConfig(f"{path}: contains no {names.KIND}")
    return found, [f"is not YAML: {fault}" for fault in faults]
