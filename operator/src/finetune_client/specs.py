"""The manifest of a job from what a caller gives, checked before the API server is asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_api.manifest.yaml_document import FieldPath, FileError, find_value, join_path, read_stream, read_text
from finetune_api.spec import FineTuneJobSpec
from finetune_api.text.printable import printable
from finetune_client.errors import InvalidJob, WrongUse
from finetune_client.metadata import NAME_FIX, is_name

if TYPE_CHECKING:
    from finetune_client.manifest.schema import Fault

LONGEST = 80
OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
                 "deletionTimestamp", "deletionGracePeriodSeconds")  # fmt: skip
"""Metadata of a stored object, with which the API server neither creates nor applies one."""
Object = dict[str, Any]
Spec = FineTuneJobSpec | Mapping[str, Any]
Labels = Mapping[str, str]


def build_manifest(
    job: str | Path | Mapping[str, Any], spec: Spec | None, labels: Labels | None, annotations: Labels | None
) -> Object:
    """Return the manifest of a named spec, of a file or of a manifest; raise InvalidJob for one that cannot run."""
    written: dict[FieldPath, str] = {}
    if spec is not None:
        _require_spec(job, spec)
        manifest: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": job}}
        manifest["spec"] = _to_wire(spec)
    elif isinstance(job, Mapping):
        manifest = json.loads(json.dumps(job))
    elif isinstance(job, Path) or "/" in job or job.endswith((".yaml", ".yml", ".json")):
        manifest, written = _read(Path(job))
    else:
        raise WrongUse(f"job {job} has no spec", "give a spec, or the path of a manifest")
    manifest.pop("status", None)
    if isinstance(meta := manifest.get("metadata"), dict):
        manifest["metadata"] = {name: value for name, value in meta.items() if name not in OF_THE_SERVER}
    for block, more in (("labels", labels), ("annotations", annotations)):
        if more:
            _add(manifest.get("metadata"), block, more)
    _check(manifest, written)
    return manifest


def _add(meta: Any, block: str, more: object) -> None:
    """Add labels or annotations to a manifest; one whose own are no block is refused later."""
    if not isinstance(more, Mapping):
        raise WrongUse(f"{block} are not of type {type(more).__name__}", "give a dict of texts")
    if isinstance(meta, dict) and isinstance(own := meta.get(block) or {}, dict):
        meta[block] = {**own, **{str(name): value for name, value in more.items()}}


def _require_spec(job: object, spec: object) -> None:
    """Raise WrongUse unless they are a name and a spec."""
    if not isinstance(job, str):
        raise WrongUse("a manifest has its own spec", "give a name and a spec, or a manifest alone")
    if isinstance(spec, str | Path):
        raise WrongUse(f"{spec} is a path, which has its own name", "give the path alone")
    if not isinstance(spec, FineTuneJobSpec | Mapping):
        raise WrongUse(f"a spec is not of type {type(spec).__name__}", "give a dict or a FineTuneJobSpec")
    if isinstance(spec, Mapping) and {"kind", "spec"} <= spec.keys():
        raise WrongUse("a manifest is not a spec", 'give its spec, manifest["spec"], or the manifest alone')


def require_name(name: object) -> str:
    """Return the name of a job; raise InvalidJob for one that Kubernetes would refuse."""
    if not (isinstance(name, str) and is_name(name)):
        raise InvalidJob(f"{_with('metadata.name', name)} is not a valid Kubernetes name", NAME_FIX)
    return name


def _to_wire(spec: Spec) -> Object:
    if isinstance(spec, FineTuneJobSpec):
        # What the caller has not set stays out, as in a manifest: the API server fills in the defaults.
        return spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    wire: Object = json.loads(json.dumps(spec))
    return wire


def _read(path: Path) -> tuple[Object, dict[FieldPath, str]]:
    try:
        documents, faults = read_stream(read_text(path))
    except FileError as error:
        raise WrongUse(str(error), error.fix) from None
    for fault in faults:
        raise InvalidJob(f"{path}:{fault.line or 1}: is not YAML: {fault.problem}", fault.fix)
    found = [one for one in documents if isinstance(one.value, dict) and one.value.get("kind") == names.KIND]
    if len(found) != 1:
        raise InvalidJob(f"{path} has {len(found)} objects of kind {names.KIND}", "give a file with one job")
    return found[0].value, found[0].written


def _check(manifest: Object, written: dict[FieldPath, str]) -> None:
    from finetune_client.manifest.object_metadata import find_metadata_faults  # noqa: PLC0415 - as the next
    from finetune_client.manifest.schema import find_faults  # noqa: PLC0415 - its schema library loads slowly

    for field, wanted in (("apiVersion", names.API_VERSION), ("kind", names.KIND)):
        if manifest.get(field) != wanted:
            raise InvalidJob(f"{_with(field, manifest.get(field))} is not known", f"{field}: {wanted}")
    if not isinstance(manifest.get("metadata"), dict):
        raise InvalidJob("metadata is missing", "metadata: {name: my-job}")
    if not manifest["metadata"].get("generateName"):
        require_name(manifest["metadata"].get("name"))
    if not isinstance(manifest.get("spec"), dict):
        raise InvalidJob("spec is missing", "kubectl finetune new writes a manifest to start with")
    found = [*find_metadata_faults(manifest["metadata"]), *find_faults(manifest["spec"], written)]
    faults = [(f"{_name(manifest, one)} {one.message}", one.fix) for one in found]
    if len(faults) == 1:
        raise InvalidJob(*faults[0])
    if faults:
        raise InvalidJob("\n".join(f"{message}: {fix}" if fix else message for message, fix in faults))


def _name(manifest: Object, fault: "Fault") -> str:
    """Return the field with its value, but that of an unknown field, which may be a secret in a wrong place."""
    from finetune_client.manifest.schema import UNKNOWN  # noqa: PLC0415 - its schema library loads slowly

    value = None if fault.message == UNKNOWN else find_value(manifest, fault.path)
    return _with(join_path(fault.path), value)


def _with(field: str, value: Any) -> str:
    """Return a field with its value, if that is one word or number."""
    if value is None or isinstance(value, dict | list):
        return field
    text = printable(json.dumps(value, ensure_ascii=False))
    return f"{field} {text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}"
