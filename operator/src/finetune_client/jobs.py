"""One FineTuneJob of a cluster, with what can be done with it."""

import codecs
import logging
from collections.abc import Iterator

from pydantic import ValidationError

from finetune_api.names import Component
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_api.text.printable import printable
from finetune_client import logs
from finetune_client.cluster.client import Cluster
from finetune_client.cluster.connection import Stop
from finetune_client.cluster.job import FIX, Job, Object
from finetune_client.errors import FineTuneError, JobDeleted
from finetune_client.notebook.live import is_notebook, open_picture
from finetune_client.notebook.picture import draw_picture
from finetune_client.progress import JobProgress, LossHistory
from finetune_client.results import JobResult, require_result
from finetune_client.watching import Watch

LOG = logging.getLogger("finetune_client")


class FineTuneJob:
    """One job, as it was when it was last read; `refresh`, `watch` and `result` read it again."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self._cluster, self._job = cluster, job
        self._losses = LossHistory()
        self._observe(job)

    @property
    def name(self) -> str:
        """Its name."""
        return self._job.name

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self._job.namespace

    @property
    def uid(self) -> str:
        """Its UID."""
        return self._job.uid

    @property
    def spec(self) -> FineTuneJobSpec:
        """Its spec."""
        try:
            return FineTuneJobSpec.model_validate(self._job.spec)
        except ValidationError as error:
            place = ".".join(map(str, ("spec", *error.errors()[0]["loc"])))
            raise FineTuneError(f"the spec of {self.name} cannot be read ({place})", FIX) from None

    @property
    def status(self) -> FineTuneJobStatus:
        """Its status."""
        return self._job.status

    @property
    def phase(self) -> str:
        """Its phase in one word."""
        return self._job.phase

    @property
    def has_ended(self) -> bool:
        """Whether it is complete or has failed."""
        return self._job.has_ended

    @property
    def progress(self) -> JobProgress:
        """Its progress."""
        return JobProgress.of(self._job)

    @property
    def manifest(self) -> Object:
        """The object as the API server stores it."""
        return self._job.raw

    def refresh(self) -> "FineTuneJob":
        """Read the job again and return it; raise JobDeleted if another job has its name now."""
        return self._take(self._cluster.get_job(self.name))

    def watch(self, timeout: float | None = None) -> Watch:
        """Return its progress now and after each change until it ends, for `for` and for `async for`.

        Raises JobDeleted if it is deleted in the meantime, and WaitTimeout after `timeout` seconds.
        """
        return Watch(self._cluster, self._job, timeout, self._observe)

    def result(self, timeout: float | None = None, *, show: bool | None = None) -> JobResult:
        """Wait until the job has ended, and return its result.

        Raises JobFailed if it fails, JobDeleted if it is deleted, and WaitTimeout after `timeout` seconds. With `show`
        it draws a bar and curves in the meantime; by default it does so in a notebook.
        """
        picture = open_picture() if (is_notebook() if show is None else show) else None
        for job in self.watch(timeout).jobs(Stop()):
            if picture:
                progress = JobProgress.of(job)
                picture.draw(draw_picture(progress, self._losses), progress.line)
        return require_result(self._job)

    def logs(
        self, *, follow: bool = False, preflight: bool = False, rank: int = 0, tail: int | None = None
    ) -> Iterator[str]:
        """Yield the lines of the log of the current run's pod; `follow` waits for the pod, and reads the runs after it
        until the job ends. Why it waits is logged."""
        wanted = logs.Wanted(Component.PREFLIGHT if preflight else Component.TRAINER, rank, tail)
        chunks = (
            logs.follow(self._cluster, self.name, wanted, LOG.info)
            if follow
            else logs.read(self._cluster, self.name, wanted)
        )
        return _lines(chunks)

    def stop(self) -> None:
        """Suspend the job: the trainer saves a checkpoint and releases its GPUs; `resume` continues from there."""
        self._suspend(wanted=True)

    def resume(self) -> None:
        """Let a stopped job continue from its last checkpoint."""
        self._suspend(wanted=False)

    def delete(self) -> None:
        """Delete the job with its pods, logs and history; its files in storage stay."""
        self._cluster.delete_job(self._job)

    def _take(self, found: Job) -> "FineTuneJob":
        if found.uid != self.uid:
            raise JobDeleted(
                f"{self.name} was deleted, and another job has its name", "read that one with get of the client"
            )
        self._observe(found)
        return self

    def _suspend(self, *, wanted: bool) -> None:
        if self._take(self._cluster.get_controlled_job(self.name)).has_ended:
            what = "stop" if wanted else "resume"
            raise FineTuneError(f"{self.name} has ended ({self.phase}): there is nothing to {what}", self._job.why)
        self._cluster.patch_spec(self.name, {"suspend": wanted})

    def _observe(self, job: Job) -> None:
        self._job = job
        self._losses.add(job)

    def __repr__(self) -> str:
        """Return name, namespace and progress in one line."""
        return f"<FineTuneJob {self.namespace}/{self.name}: {self.progress.line}>"

    def _repr_html_(self) -> str:
        return draw_picture(self.progress, self._losses)


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield complete lines, with escapes for what a terminal would interpret."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("backslashreplace"), ""
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from map(printable, lines)
    if rest := rest + decoder.decode(b"", final=True):
        yield printable(rest)
