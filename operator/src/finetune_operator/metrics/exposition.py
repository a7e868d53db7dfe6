"""Prometheus' text format (0.0.4), for series that are rendered once and joined at each scrape."""

from collections.abc import Mapping

from prometheus_client.utils import floatToGoString

COUNTER = "counter"
GAUGE = "gauge"


def build_header(name: str, kind: str, text: str) -> bytes:
    """Return the lines before the series of a metric."""
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()


def build_labels(labels: Mapping[str, str]) -> str:
    """Return labels as they are written between the braces."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def build_line(name: str, labels: str, value: float) -> bytes:
    """Return the line of one series."""
    number = floatToGoString(value)  # type: ignore[no-untyped-call]
    return f"{name}{{{labels}}} {number}\n".encode()


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
