"""Memory of the operator and size of its metrics with thousands of FineTuneJobs, finished or waiting for quota.

python tests/bench/operator_memory.py [--jobs 5000]: the API server is one in memory, because a real one takes minutes
to get so many objects.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[1] / "fixtures")]

from counting_api import CountingApi
from many_jobs import SPEC, finished, hold, job
from operator_process import Operator, read

SETTLE_SECONDS = 5


def measure(kind: str, count: int) -> None:
    """Start the operator with so many jobs, and print what it needs."""
    api = CountingApi()
    with tempfile.TemporaryDirectory() as folder, api.serving(Path(folder)) as kubeconfig:
        if kind == "finished":
            for number in range(count):
                finished(api, number)
        else:
            hold(api)
        operator = Operator(kubeconfig, Path(folder) / "log")
        try:
            if kind == "queued":
                for number in range(count):
                    one = job(f"job-{number}")
                    api.put("finetunejobs", one | {"spec": SPEC | {"scheduling": {"queueName": "team"}}})
                while sum(_phase(one) == "Queued" for one in list(api.objects["finetunejobs"].values())) < count:
                    time.sleep(1)
            time.sleep(SETTLE_SECONDS)
            before, used = operator.resident_mib, operator.processor_seconds
            lines, waits = scrape(operator)
            seconds, used = sum(waits), operator.processor_seconds - used
            print(
                f"{count} {kind}: {before:.0f} MiB, {operator.resident_mib:.0f} MiB after a scrape of {lines} lines; "
                f"{used:.2f} s of a processor, {seconds:.1f} s by the clock, in which {len(waits)} probes were "
                f"answered, the slowest in {max(waits):.2f} s"
            )
        finally:
            operator.stop()


def scrape(operator: Operator) -> tuple[int, list[float]]:
    """Return the lines of a scrape, and how long each probe took in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(operator.metrics)
        waits: list[float] = []
        while not text.done() or not waits:
            began = time.monotonic()
            read(operator.health_port, "/healthz")
            waits.append(time.monotonic() - began)
        return len(text.result().splitlines()), waits


def _phase(job: dict[str, Any]) -> str:
    return str(job["status"].get("phase", ""))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    count = parser.parse_args().jobs
    for kind in ("finished", "queued"):
        measure(kind, count)


if __name__ == "__main__":
    main()
