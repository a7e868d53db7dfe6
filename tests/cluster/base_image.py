"""A base image from Debian packages, for machines that cannot pull one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from containers import images, import_archive
from daemons import run_logged
from layout import CACHE, Layout
from oci import write_archive_of_root

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Where this machine gets its Python packages is for the builds on it to know, and for no Dockerfile.
INDEX_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL")
PROXY_SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def ensure_base_image(layout: Layout) -> str:
    """The reference of a Debian image with Python and this machine's certificates, in the node."""
    _, reference = _names()
    if reference not in images(layout):
        import_archive(layout, base_archive(layout))
    return reference


def base_archive(layout: Layout) -> Path:
    """The archive of that image, made if it is not there."""
    archive, reference = _names()
    if not archive.exists():
        _make(layout, archive, reference)
    return archive


def _names() -> tuple[Path, str]:
    recipe = [SUITE, *PACKAGES, CA_BUNDLE.read_text(), *_settings()]
    digest = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    return CACHE / f"base-{SUITE}-{digest}.tar", f"docker.io/library/finetune-base:{SUITE}-{digest}"


def _make(layout: Layout, archive: Path, reference: str) -> None:
    root = archive.with_suffix(".root.tar")
    partial = archive.with_suffix(".partial")
    run_logged(
        layout,
        "base-image",
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            f"--customize-hook=copy-in {CA_BUNDLE} {CA_BUNDLE.parent}",
            SUITE,
            str(root),
        ],
    )
    environment = [f"SSL_CERT_FILE={CA_BUNDLE}", *_settings()]
    write_archive_of_root(partial, reference, root, {"Cmd": ["python3"]}, environment)
    root.unlink()
    partial.rename(archive)


def _settings() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in INDEX_SETTINGS + PROXY_SETTINGS if name in os.environ]
