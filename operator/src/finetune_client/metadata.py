"""What Kubernetes accepts as the name of an object and of a namespace."""

import re

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_FIX = "lowercase letters, digits, - and ., starting and ending with a letter or digit"
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NAMESPACE_FIX = "at most 63 lowercase letters, digits and -, starting and ending with a letter or digit"


def is_name(value: object) -> bool:
    """Return whether an object can have that name."""
    return isinstance(value, str) and len(value) <= 253 and bool(NAME.fullmatch(value))


def is_namespace(value: object) -> bool:
    """Return whether a namespace can have that name."""
    return isinstance(value, str) and len(value) <= 63 and bool(NAMESPACE.fullmatch(value))
