"""A Python client of FineTuneJobs: create, watch, result. The kubectl plugin is made of the same parts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_api.spec import FineTuneJobSpec
    from finetune_api.status import FineTuneJobStatus
    from finetune_client.client import FineTuneClient
    from finetune_client.errors import (
        Conflict,
        FineTuneError,
        Forbidden,
        InvalidJob,
        JobDeleted,
        JobFailed,
        NotFound,
        Unreachable,
        WaitTimeout,
        WrongUse,
    )
    from finetune_client.jobs import FineTuneJob
    from finetune_client.progress import JobProgress
    from finetune_client.results import JobResult

PLACES = {
    "FineTuneClient": "finetune_client.client",
    "FineTuneJob": "finetune_client.jobs",
    "FineTuneJobSpec": "finetune_api.spec",
    "FineTuneJobStatus": "finetune_api.status",
    "JobProgress": "finetune_client.progress",
    "JobResult": "finetune_client.results",
}
ERRORS = "finetune_client.errors"
__all__ = [
    "Conflict",
    "FineTuneClient",
    "FineTuneError",
    "FineTuneJob",
    "FineTuneJobSpec",
    "FineTuneJobStatus",
    "Forbidden",
    "InvalidJob",
    "JobDeleted",
    "JobFailed",
    "JobProgress",
    "JobResult",
    "NotFound",
    "Unreachable",
    "WaitTimeout",
    "WrongUse",
]


def __getattr__(name: str) -> object:
    """Load a name when it is first used: the plugin's `--help` must not wait for the types of the API."""
    from importlib import import_module  # noqa: PLC0415

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PLACES.get(name, ERRORS)), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__
