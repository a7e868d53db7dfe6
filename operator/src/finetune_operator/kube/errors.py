"""Errors of the API server, typed by what the operator must do about them."""


class ClusterError(Exception):
    """The API server did not do what was requested."""


class RetryLater(ClusterError):  # noqa: N818 -- the name is the advice
    """Overload, time-out or a lost connection: the same request may succeed later."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


class Overloaded(RetryLater):
    """The API server refuses requests of this client for some time (429)."""


class Denied(ClusterError):  # noqa: N818
    """The operator lacks a right."""

    def __init__(self, verb: str, resource: str, namespace: str) -> None:
        super().__init__(f"the operator may not {verb} {resource} in namespace {namespace}")
        self.verb = verb
        self.resource = resource


class Gone(ClusterError):  # noqa: N818
    """The object or its namespace does not exist."""


class AlreadyExists(ClusterError):  # noqa: N818
    """An object with that name already exists."""


class Outdated(ClusterError):  # noqa: N818
    """Another client has changed the object since it was read."""


class Refused(ClusterError):  # noqa: N818
    """The API server rejects the request (admission, validation, quota), with this message."""


class NameTaken(ClusterError):  # noqa: N818
    """An object with the name of a child exists, but does not belong to the job."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name} exists but is not owned by this FineTuneJob")
        self.kind = kind
        self.name = name
