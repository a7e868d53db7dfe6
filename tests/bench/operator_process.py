"""The operator's process: its figures, and a profile of its event loop.

python tests/bench/operator_process.py PROFILE: runs the operator as `python -m finetune_operator` does, and writes into
the file which functions took its processor time when it ends.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import FrameType

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.002
REQUEST = re.compile(r"finetune_operator_api_requests_total\{([^}]*)\} (\S+)")


class Operator:
    """The operator's process, and its own metrics."""

    def __init__(self, kubeconfig: Path, log: Path, profile: Path | None = None, **settings: str) -> None:
        with socket.socket() as first, socket.socket() as second:
            for one in (first, second):
                one.bind(("127.0.0.1", 0))
            self.port, self.health_port = (one.getsockname()[1] for one in (first, second))
        env = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "MALLOC_ARENA_MAX": "2",  # as in its image
            "FINETUNE_TRAINER_IMAGE": "registry.example/finetune-trainer:1",
            "FINETUNE_METRICS_PORT": str(self.port),
            "FINETUNE_HEALTH_PORT": str(self.health_port),
            **settings,
        }
        command = [__file__, str(profile)] if profile else ["-m", "finetune_operator"]
        started = time.monotonic()
        with log.open("ab") as file:
            self.process = subprocess.Popen([sys.executable, *command], env=env, stderr=file)
        wait_until_ready(self.process, self.health_port, log)
        self.seconds_to_ready = time.monotonic() - started
        self.requests_to_ready = self.requests()

    def metrics(self) -> str:
        """Return the text of a scrape; on a busy machine one may time out."""
        while self.process.poll() is None:
            if text := read(self.port, "/metrics"):
                return text
        raise SystemExit("the operator has ended")

    def requests(self) -> Counter[str]:
        """Return the requests so far, by verb and resource."""
        found: Counter[str] = Counter()
        for labels, count in REQUEST.findall(self.metrics()):
            words = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found[f"{words['verb']} {words.get('resource', '')}".strip()] += int(float(count))
        return found

    @property
    def resident_mib(self) -> float:
        """The resident memory."""
        return resident_mib(self.process.pid)

    @property
    def processor_seconds(self) -> float:
        """The processor time of the whole process."""
        return seconds_of(self.process.pid)

    @property
    def loop_seconds(self) -> float:
        """The processor time of the event loop's thread."""
        return _ticks(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/stat")) / TICKS

    def stop(self) -> None:
        """End it as a kubelet does."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(120)


def read(port: int, path: str) -> str | None:
    """Return the answer of a server, or None without one."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for a controller's readiness at its health port."""
    while read(port, "/readyz") is None:
        if process.poll() is not None:
            raise SystemExit(f"{log.stem} ended: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def seconds_of(pid: int) -> float:
    """Return the processor time of a process."""
    return _ticks(Path(f"/proc/{pid}/stat")) / TICKS


def _ticks(stat: Path) -> int:
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


class Sampler:
    """Samples of what the event loop does, one for each two milliseconds of the process's processor time.

    The time of the threads that call the API server counts for what the loop does meanwhile: `select` if it waits.
    A profiler that traces every call would make small functions look many times as expensive as they are.
    """

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._within: Counter[str] = Counter()
        self._samples = 0

    def start(self) -> None:
        """Begin to sample."""
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)

    def _take(self, _signal: int, frame: FrameType | None) -> None:
        found = []
        while frame is not None:
            code = frame.f_code
            found.append(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_firstlineno} {code.co_qualname}")
            frame = frame.f_back
        self._samples += 1
        self._own[found[0]] += 1
        self._within.update(set(found))

    def write(self, path: Path) -> None:
        """End, and write the functions with the most samples."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = [f"{self._samples} samples\n"]
        for title, counts in (("itself", self._own), ("with what it calls", self._within)):
            lines.append(f"\n| share | samples | function {title} |\n| --- | --- | --- |\n")
            for name, count in counts.most_common(40):
                lines.append(f"| {100 * count / max(1, self._samples):.1f} % | {count} | `{name}` |\n")
        path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Run the operator with the sampler."""
    from finetune_operator import __main__ as operator

    sampler = Sampler()
    sampler.start()
    try:
        operator.main()
    finally:
        sampler.write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
