"""Every field of the status survives the API server: what the schema does not know would be pruned in silence."""

import types
import typing
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from pydantic import BaseModel, StringConstraints

from finetune_api import names
from finetune_api.status import Condition, FineTuneJobStatus

WORDS = {"status": "True", "reason": "Succeeded"}


def _value(name: str, annotation: Any) -> Any:
    """A valid, non-empty value of a field's type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        is_digest = any(isinstance(one, StringConstraints) and one.min_length == 64 for one in arguments)
        return "ab" * 32 if is_digest else _value(name, arguments[0])
    if origin in {typing.Union, types.UnionType}:
        return _value(name, next(one for one in arguments if one is not type(None)))
    if origin is list:
        return [_value(name, arguments[0])]
    if origin is dict:
        return {"KEY": _value(name, arguments[1])}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return populated(annotation)
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    plain = {bool: True, int: 7, float: 0.12345, str: WORDS.get(name, "word"), datetime: moment}
    return plain[annotation]


def populated(model: type[BaseModel]) -> BaseModel:
    """A model with a value in every field, at every depth."""
    hints = typing.get_type_hints(model, include_extras=True)
    values = {name: _value(name if model is Condition else "", hints[name]) for name in model.model_fields}
    return model.model_validate(values)


def _leaves(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {leaf for name, inner in value.items() for leaf in _leaves(inner, f"{path}.{name}")}
    if isinstance(value, list):
        return {leaf for inner in value for leaf in _leaves(inner, f"{path}[]")}
    return {path}


def test_every_status_field_is_read_back_as_it_was_written(control_plane: Any, world: Any) -> None:
    world.create()
    full = populated(FineTuneJobStatus).to_wire()
    assert len(_leaves(full)) > 100
    api = client.CustomObjectsApi(config.new_client_from_config(str(control_plane)))
    where = (names.GROUP, names.VERSION, world.namespace, names.PLURAL, "one")
    api.patch_namespaced_custom_object_status(*where, {"status": full})
    stored = world.status()
    assert stored == full
    assert FineTuneJobStatus.model_validate(stored).to_wire() == full
