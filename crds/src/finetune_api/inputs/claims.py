"""URIs of files in a PersistentVolumeClaim of the job's namespace: `pvc://claim/path`."""

SCHEME = "pvc://"


def is_claim_uri(uri: str) -> bool:
    """Return whether a URI names files in a claim."""
    return uri.startswith(SCHEME)


def split_claim_uri(uri: str) -> tuple[str, str]:
    """Return the claim's name, and the path in it without slashes around it."""
    claim, _, path = uri.removeprefix(SCHEME).partition("/")
    return claim, path.strip("/")
