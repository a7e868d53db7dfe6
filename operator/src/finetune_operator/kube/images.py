"""Names of images."""


def strip_tag(image: str) -> str:
    """Return an image reference without tag and digest, spelled as it is."""
    head, slash, tail = image.partition("@")[0].rpartition("/")
    return head + slash + tail.partition(":")[0]


def repository(image: str) -> str:
    """Return an image reference without tag and digest, with Docker Hub's short names expanded."""
    name = strip_tag(image)
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"
