"""The training's metrics for Prometheus, without labels, because the scraper adds the pod's."""

import time
from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # type: ignore[no-untyped-call]
CHECKPOINT_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
STEP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAUGES = {
    "train_loss": ("train_loss", "Training loss, nats per trained token"),
    "eval_loss": ("eval_loss", "Evaluation loss, nats per trained token"),
    "best_eval_loss": ("best_eval_loss", "Lowest evaluation loss so far"),
    "baseline_eval_loss": ("baseline_eval_loss", "Evaluation loss of the base model before training"),
    "learning_rate": ("learning_rate", "Learning rate of the last step"),
    "grad_norm": ("gradient_norm", "Gradient norm of the last step, before clipping"),
    "tokens_per_second": ("tokens_per_second", "Trained input tokens per second"),
    "gpu_memory_peak_bytes": ("gpu_memory_peak_bytes", "Peak allocated GPU memory"),
    "step": ("step", "Completed optimiser steps"),
    "total_steps": ("planned_steps", "Planned optimiser steps"),
}


class TrainerMetrics:
    """One registry per run; a metric appears once it has a value, which may be NaN, unlike in the status."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._gauges: dict[str, Gauge] = {}
        self._heartbeats = Counter("finetune_trainer_heartbeats", "Heartbeats of the training", registry=self._registry)
        self._bytes = Counter(
            "finetune_trainer_transferred_bytes", "Bytes uploaded and downloaded", registry=self._registry
        )
        self._tokens = Counter("finetune_trainer_tokens", "Trained input tokens", registry=self._registry)
        self._tracker_failures = Counter(
            "finetune_trainer_tracker_failures", "Failed attempts to send to a tracker", registry=self._registry
        )
        self._checkpoint_failures = Counter(
            "finetune_trainer_checkpoint_failures", "Failed checkpoint uploads", registry=self._registry
        )
        self._checkpoint_seconds = Histogram(
            "finetune_trainer_checkpoint_seconds",
            "Time to write and upload a checkpoint",
            buckets=CHECKPOINT_BUCKETS,
            registry=self._registry,
        )
        self._step_seconds = Histogram(
            "finetune_trainer_step_seconds",
            "Duration of an optimiser step",
            buckets=STEP_BUCKETS,
            registry=self._registry,
        )
        self._last_step: tuple[int, float] | None = None

    def beat(self, transferred: int) -> None:
        """Count a heartbeat and transferred bytes."""
        self._heartbeats.inc()
        # A retried transfer reports its bytes as negative; a counter cannot fall.
        self._bytes.inc(max(0, transferred))

    def count_tokens(self, tokens: int) -> None:
        """Count trained tokens."""
        self._tokens.inc(tokens)

    def count_tracker_failure(self) -> None:
        """Count a failed attempt to send to a tracker."""
        self._tracker_failures.inc()

    def count_checkpoint(self, seconds: float | None) -> None:
        """Count a saved checkpoint, or a failed upload (None)."""
        if seconds is None:
            self._checkpoint_failures.inc()
        else:
            self._checkpoint_seconds.observe(seconds)

    def update(self, progress: Mapping[str, object], metrics: Mapping[str, object]) -> None:
        """Set the given gauges."""
        self._heartbeats.inc()
        for name, value in {**progress, **metrics}.items():
            if name in GAUGES and isinstance(value, int | float):
                self._gauge(name).set(value)
        step = progress.get("step")
        if isinstance(step, int):
            self._time_step(step)

    def exposition(self) -> bytes:
        """Return the text for Prometheus."""
        return generate_latest(self._registry)

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            suffix, text = GAUGES[name]
            self._gauges[name] = Gauge(f"finetune_trainer_{suffix}", text, registry=self._registry)
        return self._gauges[name]

    def _time_step(self, step: int) -> None:
        now = time.monotonic()
        if self._last_step and step > self._last_step[0]:
            done = step - self._last_step[0]
            for _ in range(done):
                self._step_seconds.observe((now - self._last_step[1]) / done)
        if self._last_step is None or step > self._last_step[0]:
            self._last_step = (step, now)
