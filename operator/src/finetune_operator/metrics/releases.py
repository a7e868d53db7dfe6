"""The series of each FineTuneRelease: whether the requested result answers, and whether something stops the release.

Any thread may collect them while the event loop changes them.
"""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.kube.objects import Key

LABELS = ("namespace", "name", "reason")
State = tuple[bool, bool, str]
"""Whether a release is Ready, whether it is Stalled, and its reason."""


class ReleaseCollector(Collector):
    """Collector of what the watch of releases has shown."""

    def __init__(self) -> None:
        self._states: dict[Key, State] = {}

    def update(self, key: Key, *, is_ready: bool, is_stalled: bool, reason: str) -> None:
        """Take the state of a release."""
        self._states[key] = is_ready, is_stalled, reason

    def remove(self, key: Key) -> None:
        """Remove the series of a deleted release."""
        self._states.pop(key, None)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics; without releases they have no series."""
        ready = GaugeMetricFamily(
            "finetune_release_ready", "1 if the requested result of a release answers, else 0", labels=LABELS
        )
        stalled = GaugeMetricFamily(
            "finetune_release_stalled", "1 if a release is stopped by what its reason names, else 0", labels=LABELS
        )
        for key, (is_ready, is_stalled, reason) in list(self._states.items()):
            labels = (key.namespace, key.name, reason)
            ready.add_metric(labels, float(is_ready))
            stalled.add_metric(labels, float(is_stalled))
        yield ready
        yield stalled
