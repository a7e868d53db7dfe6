"""The owner of a tracking server, who sees what is sent and answers what they like."""

import gzip
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from http_servers import QuietHandler
from listening_server import listening
from tracked_job import job, lines, reporter
from trackers import refusing_server
from waiting import wait_until

from finetune_api.tracking import MlflowTracking, WandbTracking
from finetune_trainer.monitoring.tracking.follower import Follower, RunEnd
from finetune_trainer.monitoring.tracking.mlflow import MlflowRun
from finetune_trainer.monitoring.tracking.wandb import WandbRun

KEY = "k" * 40
MEBIBYTE = b" " * 2**20


def mlflow(uri: str, folder: Path) -> MlflowRun:
    (folder / "MLFLOW_TRACKING_TOKEN").write_text(KEY)
    return MlflowRun(job("uid-1"), MlflowTracking(endpoint=uri, experiment="e"), folder)


def note_after(run: Any, folder: Path) -> str:
    """What the status says of a tracker that failed."""
    (folder / "m").write_text(lines(range(1, 4)))
    told = reporter()
    follower = Follower(run, folder / "m", told)
    follower.start()
    wait_until(lambda: bool(told.snapshot().progress.note))
    follower.ask_to_end(RunEnd.STOPPED)
    assert follower.wait(180)
    assert KEY not in told.snapshot().model_dump_json()
    return told.snapshot().progress.note or ""


@contextmanager
def endless_server(parts: Iterable[bytes], encoding: str) -> Iterator[tuple[str, list[int]]]:
    """Answer with these parts for as long as the client reads them; also yield how much was read of each answer."""
    sent: list[int] = []

    class Endless(QuietHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Encoding", encoding)
            self.end_headers()
            sent.append(0)
            try:
                for part in parts:
                    self.wfile.write(part)
                    sent[-1] += len(part)
            except OSError:
                return

        do_GET = do_POST = answer

    with listening(Endless) as uri:
        yield uri, sent


def test_mlflow_does_not_follow_a_redirect(tmp_path: Path) -> None:
    with refusing_server(500) as (other, sent), refusing_server(307, {"Location": other}) as (own, asked):
        assert "returned 307" in note_after(mlflow(own, tmp_path), tmp_path)
    assert {one.authorization for one in asked} == {f"Bearer {KEY}"}
    assert sent == []


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_without_end_is_read_to_a_limit(tmp_path: Path, encoding: str) -> None:
    part = MEBIBYTE if encoding == "identity" else gzip.compress(MEBIBYTE)
    with endless_server(itertools.repeat(part), encoding) as (uri, sent):
        assert "the response is too large" in note_after(mlflow(uri, tmp_path), tmp_path)
        wait_until(lambda: bool(sent))
    assert max(sent) < 64 * 2**20


def test_a_key_that_wandb_refuses_is_reported_with_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(lines(range(1, 4)))
    (tmp_path / "WANDB_API_KEY").write_text(KEY)
    with refusing_server(401) as (uri, asked):
        server = WandbTracking(project="p", endpoint=uri, credentials_secret_ref={"name": "w"})
        told = reporter()
        follower = Follower(WandbRun(job("uid-3"), server, tmp_path / "wandb", tmp_path), tmp_path / "m", told)
        follower.start()
        wait_until(lambda: "check tracking.wandb and its Secret" in (told.snapshot().progress.note or ""), seconds=180)
        follower.ask_to_end(RunEnd.STOPPED)
        follower.abandon()
    assert "/graphql" in {one.path for one in asked}
    assert KEY not in told.snapshot().model_dump_json()


def test_wandb_follows_a_redirect_to_another_server_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(lines(range(1, 4)))
    (tmp_path / "WANDB_API_KEY").write_text(KEY)
    with refusing_server(401) as (other, sent), refusing_server(307, {"Location": other}) as (own, asked):
        server = WandbTracking(project="p", endpoint=own, credentials_secret_ref={"name": "w"})
        follower = Follower(WandbRun(job("uid-4"), server, tmp_path / "wandb", tmp_path), tmp_path / "m", reporter())
        follower.start()
        wait_until(lambda: bool(sent), seconds=180)
        follower.ask_to_end(RunEnd.STOPPED)
        follower.abandon()
    assert {one.authorization is None for one in asked} == {False}
    assert {one.authorization for one in sent} == {None}
