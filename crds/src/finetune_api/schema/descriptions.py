"""The docstrings of fields, from the source of their classes, as descriptions in a JSON schema.

pydantic reads them too (`use_attribute_docstrings`), but whenever a class is made: a third of the time in which the
types are imported, in every process that uses one, for texts that only the CRD has.
"""

import ast
import functools
import inspect
import sys
from typing import Any

from finetune_api.blocks import Block


def describe_fields(schema: dict[str, Any], model: type[Block]) -> dict[str, Any]:
    """Return the JSON schema of `model` with the docstring of each field that has no description of its own."""
    types = _types_by_name()
    definitions = {
        name: _described(definition, types[name]) if name in types else definition
        for name, definition in schema.get("$defs", {}).items()
    }
    return _described(schema, model) | ({"$defs": definitions} if definitions else {})


def _described(schema: dict[str, Any], model: type[Block]) -> dict[str, Any]:
    if "properties" not in schema:
        return schema
    properties = dict(schema["properties"])
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if text := _docstring(model, name):
            node = properties[alias]
            default = {"default": node["default"]} if "default" in node else {}
            properties[alias] = default | {"description": text} | node
    return schema | {"properties": properties}


def _docstring(model: type[Block], field: str) -> str:
    """Return the docstring of a field in the class that declares it last, or ""."""
    for owner in model.__mro__:
        if field in vars(owner).get("__annotations__", {}):
            return _docstrings(owner.__module__).get((owner.__qualname__, field), "")
    return ""


@functools.cache
def _docstrings(module: str) -> dict[tuple[str, str], str]:
    """Return the docstrings of the attributes of all classes at the top of a module, by class and attribute."""
    found = {}
    for owner in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(owner, ast.ClassDef):
            for attribute, text in zip(owner.body, owner.body[1:], strict=False):
                match attribute, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                        found[owner.name, name] = inspect.cleandoc(docstring)
    return found


def _types_by_name() -> dict[str, type[Block]]:
    types, found = [Block], {}
    while types:
        for one in types.pop().__subclasses__():
            found[one.__name__] = one
            types.append(one)
    return found
