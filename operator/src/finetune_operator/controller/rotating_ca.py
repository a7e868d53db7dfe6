"""TLS of the watches with a certificate authority that is renewed on disk, as that of a service account is."""

import contextlib
import ssl
from dataclasses import fields
from typing import Any, Self

import kopf


class RotatingContext(ssl.SSLContext):
    """A client's TLS context that reads its CA file again for each new connection."""

    ca_path: str = ""

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Trust what the file contains now, in addition; an unreadable file changes nothing."""
        with contextlib.suppress(OSError):  # also ssl.SSLError: the file is being replaced
            self.load_verify_locations(cafile=self.ca_path)
        return super().wrap_bio(*args, **options)


class RotatingConnection(kopf.ConnectionInfo):
    """A connection whose CA file may be replaced: kopf otherwise reads it once, at the login."""

    @classmethod
    def of(cls, found: kopf.ConnectionInfo) -> Self:
        """Return the same connection with a CA that may be replaced."""
        return cls(**{one.name: getattr(found, one.name) for one in fields(found)})

    def as_ssl_context(self) -> ssl.SSLContext:
        """Return the context of the watches."""
        if not self.ca_path:
            return super().as_ssl_context()
        context = RotatingContext(ssl.PROTOCOL_TLS_CLIENT)
        context.ca_path = str(self.ca_path)
        context.load_verify_locations(cafile=context.ca_path)
        return context
