"""Names of children: a FineTuneJob's name as a DNS label and as a label value."""

import hashlib

MAX_SLUG = 51
"""63 minus the longest suffix of a child's name or its pod's host name (`-preflight-0`, `-999-merge-0`)."""


def slug(name: str) -> str:
    """Return the name as a DNS label that starts with a letter; a changed name gets a hash, so that it is unique."""
    label = name.replace(".", "-")
    if not label[0].isalpha():
        label = f"j-{label}"
    if label == name and len(label) <= MAX_SLUG:
        return label
    return f"{label[: MAX_SLUG - 7].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def selector_value(name: str) -> str:
    """Return the value of the job-name label: the name, or its slug if the name is too long for a label value."""
    return name if len(name) <= 63 else slug(name)
