"""A W&B run in its own process: the client takes seconds to import, hooks into the interpreter's exit and waits there
for its server, which must not delay the trainer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_api.handoff import CA_FILE, WANDB_CA_DIR, WANDB_DIR, JobConfig
from finetune_api.status import Resolved
from finetune_api.tracking import WandbMode, WandbTracking
from finetune_trainer.monitoring.tracking.follower import Point, RunEnd, TrackerFault

KEY = "WANDB_API_KEY"
SERVER = "https://api.wandb.ai"
SERVER_SETTING = "WANDB_BASE_URL"
INHERITED = (
    "PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
AUTHORITY = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Where the client's two parts read an authority: the process that sends, and the library that logs in."""
FOLDERS = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
SWITCHED_OFF = {
    "WANDB_CONSOLE": "off",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""Code, output, repository and crash reports are not sent."""


class WandbRun:
    """One run for the whole job; its id is the job's UID."""

    name = "W&B"

    def __init__(
        self,
        config: JobConfig,
        asked: WandbTracking,
        directory: Path,
        secrets: Path = Path(WANDB_DIR),
        authorities: Path = Path(WANDB_CA_DIR),
    ) -> None:
        self._config, self._asked, self._directory = config, asked, directory
        self._secrets, self._authorities = secrets, authorities
        self._process: subprocess.Popen[bytes] | None = None
        self._is_abandoned = False

    def open(self) -> None:
        """Start the process and wait until it has a run."""
        self._clear()
        asked = self._asked
        try:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory.mkdir(parents=True)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "finetune_trainer.monitoring.tracking.wandb_process"],
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise TrackerFault(f"its process cannot be started: {error.strerror}") from None
        if self._is_abandoned:
            self._kill()
        self._write(self._first_line())
        answer = self._process.stdout.readline() if self._process.stdout else b""
        if answer.strip() != b"ready":
            reply = answer.decode(errors="replace").strip()[:64] or "its process ended"
            raise TrackerFault(
                f"{asked.endpoint or 'W&B'} did not create the run ({reply}); check tracking.wandb and its Secret"
            )

    def settings(self, resolved: Resolved) -> None:
        """Send the settings as the run's config."""
        self._write({"settings": resolved.to_wire()})

    def send(self, points: Sequence[Point]) -> None:
        """Send the values; W&B ignores steps that the run has already."""
        for point in points:
            self._write({"step": point.step, "values": dict(point.values)})

    def close(self, ending: RunEnd, known: Mapping[str, str]) -> None:
        """Send the end and wait without a limit until the process has sent everything."""
        self._write({"exit": 0 if ending is RunEnd.FINISHED else 1, "summary": dict(known)})
        process = self._process
        if process is None or process.wait() != 0:
            raise TrackerFault("the run could not be finished")
        self._clear()

    def abandon(self) -> None:
        """Kill the process and its children; a later one is killed immediately."""
        self._is_abandoned = True
        self._kill()

    def collect(self, target: Path) -> None:
        """Copy the file of an offline run to `target`, in a folder for `wandb sync`."""
        for file in sorted(self._directory.glob("wandb/offline-run-*/*.wandb")):
            folder = target / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.name)

    def _write(self, content: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise TrackerFault("its process is not running")
        try:
            process.stdin.write(json.dumps(content).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            raise TrackerFault("its process has ended") from None

    def _kill(self) -> None:
        process = self._process  # read once: the follower's thread may clear it meanwhile
        if process and process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _clear(self) -> None:
        """End an earlier process; only on the follower's thread, which reads and writes the pipes."""
        self._kill()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()

    def _environment(self) -> dict[str, str]:
        """Return the environment with W&B's key and without the keys of storage."""
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | SWITCHED_OFF
        environment |= dict.fromkeys(FOLDERS, str(self._directory))
        if self._asked.mode is WandbMode.OFFLINE:
            return environment
        if (own := self._authorities / CA_FILE).is_file():
            environment |= dict.fromkeys(AUTHORITY, str(own))
        return environment | read_access(self._asked, self._secrets)

    def _first_line(self) -> dict[str, Any]:
        config, asked = self._config, self._asked
        return {
            "project": asked.project,
            "entity": asked.entity,
            "mode": asked.mode.value.lower(),
            "id": "".join(letter if letter.isalnum() else "-" for letter in config.uid),
            "name": f"{config.namespace}/{config.name}",
            "config": {
                "job": config.name,
                "namespace": config.namespace,
                "jobUID": config.uid,
                "objective": config.spec.objective.value,
                "configSHA256": config.config_sha256,
                "baseModel": config.spec.model.uri,
                "dataset": config.spec.dataset.train.title,
                "outputURI": config.output_key(),
            },
        }


def read_access(asked: WandbTracking, secrets: Path) -> dict[str, str]:
    """Return the key and its server as variables of the client; a key of the environment has the server named there."""
    path = secrets / KEY
    if path.is_file():
        key, own = path.read_text(encoding="utf-8").strip(), SERVER
    else:
        key, own = os.environ.get(KEY, ""), os.environ.get(SERVER_SETTING) or SERVER
    if not key:
        raise TrackerFault(f"there is no {KEY}: check the Secret that tracking.wandb.credentialsSecretRef names")
    return {KEY: key, SERVER_SETTING: asked.endpoint or own}
