"""The digest of what a Job is built from, by which an edit of the spec is recognised."""

import hashlib
import json
from typing import Any

from finetune_api.spec import AT_ONCE, FineTuneJobSpec


def digest_settings(spec: FineTuneJobSpec) -> str:
    """Return the SHA-256 of the spec without what takes effect at once, such as limits, and without default values.

    Queues are left out too, because a waiting Job is moved to another one.
    """
    queues = {"scheduling": {"queue_name"}, "preflight": {"queue_name"}, "resources": {"merge": {"queue_name"}}}
    left_out: dict[str, Any] = queues | dict.fromkeys(AT_ONCE, True)
    given = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=left_out)
    settings = {name: value for name, value in given.items() if value != {}}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
