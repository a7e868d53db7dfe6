"""Our storage against boto3's transfer manager alone: one large object and many small ones, to and from a real server.

python tests/bench/store_speed.py [--mib 1024] [--files 2000] [--rounds 3]; exits with 1 where a requirement is missed.

Both use the same server on loopback, one after the other in each round, in a changing order; a figure is the median of
the rounds' ratios. The transfer manager gets every small file at once, with its default of ten transfers in flight.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))

from boto3.s3.transfer import TransferConfig, create_transfer_manager
from s3_servers import S3Server, start_s3

from finetune_trainer.storage.protocol import describe_files, join_uri
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3
from finetune_trainer.storage.transfers import transfer_all

LEAST_RATIO = 0.95
BUCKET = "bench"
SMALL_FILE_BYTES = 4096


class Ours:
    """The storage of the trainer."""

    name = "ours"

    def __init__(self, store: S3Store) -> None:
        self._store = store

    def upload(self, folder: Path, prefix: str) -> None:
        uri, files = f"s3://{BUCKET}/{prefix}", list(folder.iterdir())
        transfer_all(
            (path.stat().st_size, partial(self._store.upload, path, join_uri(uri, path.name))) for path in files
        )

    def download(self, prefix: str, folder: Path) -> None:
        self._store.download_folder(f"s3://{BUCKET}/{prefix}", folder)


class Boto3:
    """The transfer manager that boto3 uses, with its defaults."""

    name = "boto3"

    def __init__(self, client: Any) -> None:
        self._client = client

    def upload(self, folder: Path, prefix: str) -> None:
        with create_transfer_manager(self._client, TransferConfig()) as manager:
            futures = [manager.upload(str(path), BUCKET, f"{prefix}/{path.name}") for path in folder.iterdir()]
            for future in futures:
                future.result()

    def download(self, prefix: str, folder: Path) -> None:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        folder.mkdir(parents=True)
        with create_transfer_manager(self._client, TransferConfig()) as manager:
            futures = [
                manager.download(BUCKET, item["Key"], str(folder / Path(item["Key"]).name))
                for page in pages
                for item in page["Contents"]
            ]
            for future in futures:
                future.result()


def write_files(folder: Path, count: int, size: int) -> Path:
    """Return a folder of random files."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"{number:05d}").open("wb") as file:
            for start in range(0, size, 2**24):
                file.write(os.urandom(min(2**24, size - start)))
    return folder


def seconds(call: Callable[[], None]) -> float:
    """Return how long the call takes by the clock."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def measure(
    sides: tuple[Any, Any], folder: Path, place: Path, rounds: int
) -> Iterator[tuple[str, float, float, float]]:
    """Yield direction, the ratio of speeds, and the median seconds of both."""
    times: dict[tuple[str, str], list[float]] = {}
    size = sum(path.stat().st_size for path in folder.iterdir())
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            prefix, target = f"{folder.name}-{side.name}-{number}", place / f"{folder.name}-{side.name}-{number}"
            spent = seconds(partial(side.upload, folder, prefix))
            times.setdefault(("upload", side.name), []).append(spent)
            spent = seconds(partial(side.download, prefix, target / "files"))
            times.setdefault(("download", side.name), []).append(spent)
            if sum(file.size for file in describe_files(target)) != size:
                raise SystemExit(f"{side.name}: files are missing")
            for path in (target / "files").iterdir():
                path.unlink()
    for direction in ("upload", "download"):
        ours, theirs = times[direction, "ours"], times[direction, "boto3"]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        yield direction, ratio, statistics.median(ours), statistics.median(theirs)


def main() -> None:
    """Print the table; exit with 1 where a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    is_missed = False
    with tempfile.TemporaryDirectory() as name, closing(start_s3(Path(name) / "server")) as started:
        place = Path(name)
        (place / "server").mkdir()
        server: S3Server = next(started)
        os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
        server.client().create_bucket(Bucket=BUCKET)
        sides = Ours(S3Store(connect_s3(server.spec()))), Boto3(server.client())
        print("| | ours (s) | boto3 (s) | speed, ours / boto3 |\n| --- | --- | --- | --- |")
        for text, count, size in (
            (f"{arguments.mib} MiB in one object", 1, arguments.mib * 2**20),
            (f"{arguments.files} objects of {SMALL_FILE_BYTES // 1024} KiB", arguments.files, SMALL_FILE_BYTES),
        ):
            folder = write_files(place / f"files-{count}", count, size)
            for direction, ratio, ours, theirs in measure(sides, folder, place, arguments.rounds):
                print(f"| {text}, {direction} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True)
                is_missed |= ratio < LEAST_RATIO
    print(f"required: at least {LEAST_RATIO}")
    sys.exit(1 if is_missed else 0)


if __name__ == "__main__":
    main()
