"""What Kubernetes accepts as the name of an object, of a namespace, and of a label."""

import re

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
NAME_FIX = "lowercase letters, digits, - and ., starting and ending with a letter or digit"
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NAMESPACE_FIX = "at most 63 lowercase letters, digits and -, starting and ending with a letter or digit"

LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
LABEL_FIX = "at most 63 letters, digits, -, _ and ., starting and ending with a letter or digit"
KEY_FIX = f"{LABEL_FIX}; before it, if you like, a domain and /"


def is_name(value: object) -> bool:
    """Return whether an object can have that name."""
    return isinstance(value, str) and len(value) <= 253 and bool(NAME.fullmatch(value))


def is_namespace(value: object) -> bool:
    """Return whether a namespace can have that name."""
    return isinstance(value, str) and len(value) <= 63 and bool(NAMESPACE.fullmatch(value))


def is_name_prefix(value: object) -> bool:
    """Return whether the API server can make names that begin with it; a - at its end is usual."""
    return isinstance(value, str) and is_name(f"{value[:-2]}a" if len(value) > 1 and value.endswith("-") else value)


def is_label_value(value: str) -> bool:
    """Return whether a label can have that value."""
    return len(value) <= 63 and (not value or bool(LABEL.fullmatch(value)))


def is_key(value: object) -> bool:
    """Return whether a label or a finalizer can have that name: a word, with a domain before a / or without."""
    if not isinstance(value, str):
        return False
    domain, slash, word = value.rpartition("/")
    return bool(word) and is_label_value(word) and (is_name(domain) if slash else True)
