"""An MLflow run over the REST API of the tracking server, which is small and stable; the client library would add
forty packages for six requests."""

import json
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from finetune_api.handoff import CA_FILE, MLFLOW_CA_DIR, MLFLOW_DIR, JobConfig
from finetune_api.status import Resolved
from finetune_api.tracking import MlflowTracking
from finetune_trainer.monitoring.tracking.follower import Point, RunEnd, TrackerFault

TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
NO_SERVER = "the server is not an MLflow tracking server: check tracking.mlflow.endpoint"
LARGEST_ANSWER = 4 * 1024 * 1024
METRICS_AT_ONCE = 1000
PARAMS_AT_ONCE = 100
LONGEST_PARAM = 500
UID_TAG = "finetune.job_uid"
STATUS = {RunEnd.FINISHED: "FINISHED", RunEnd.FAILED: "FAILED", RunEnd.STOPPED: "SCHEDULED"}
ABSENT, PRESENT = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"


class MlflowRun:
    """One run for the whole job, found again by the job's UID."""

    name = "MLflow"

    def __init__(
        self,
        config: JobConfig,
        asked: MlflowTracking,
        secrets: Path = Path(MLFLOW_DIR),
        authorities: Path = Path(MLFLOW_CA_DIR),
    ) -> None:
        self._config, self._asked, self._secrets, self._authorities = config, asked, secrets, authorities
        self._http: httpx2.Client | None = None
        self._run_id = self._experiment = ""
        self._last_steps: dict[str, int] = {}
        self._has_params = False

    def open(self) -> None:
        """Find or create the run of this job; read the credentials again, because they may have been corrected."""
        self.abandon()
        self._http = self._connect()
        try:
            self._resume_run(self._find() or self._create())
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise TrackerFault(NO_SERVER) from None

    def settings(self, resolved: Resolved) -> None:
        """Send the settings as parameters; MLflow does not allow changes, so the first attempt's remain."""
        if self._has_params:
            return
        values = resolved.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"method_reason"})
        params = [{"key": key, "value": str(value)[:LONGEST_PARAM]} for key, value in values.items()]
        for at in range(0, len(params), PARAMS_AT_ONCE):
            self._log(params=params[at : at + PARAMS_AT_ONCE])

    def send(self, points: Sequence[Point]) -> None:
        """Send the values, except those that the server has from an earlier attempt."""
        metrics = [
            {"key": key, "value": value, "timestamp": _now(), "step": point.step}
            for point in points
            for key, value in point.values.items()
            if point.step > self._last_steps.get(key, -1)
        ]
        for at in range(0, len(metrics), METRICS_AT_ONCE):
            part = metrics[at : at + METRICS_AT_ONCE]
            self._log(metrics=part)
            self._last_steps |= {str(one["key"]): int(one["step"]) for one in part}  # type: ignore[call-overload]

    def close(self, ending: RunEnd, known: Mapping[str, str]) -> None:
        """Send the end; a run that a later attempt resumes becomes SCHEDULED."""
        if known:
            self._log(tags=[{"key": f"finetune.{key}", "value": value} for key, value in known.items()])
        end = {} if ending is RunEnd.STOPPED else {"end_time": _now()}
        self._post("runs/update", {"run_id": self._run_id, "status": STATUS[ending], **end})
        self.abandon()

    def abandon(self) -> None:
        """Close the connection."""
        if self._http:
            self._http.close()

    def _find(self) -> Any:
        experiment = self._experiment = self._find_experiment()
        wanted = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{UID_TAG}` = '{self._config.uid}'",
            "max_results": 1,
        }
        found = self._post("runs/search", wanted).get("runs") or []
        if not found:
            return None
        self._post("runs/update", {"run_id": found[0]["info"]["run_id"], "status": "RUNNING"})
        return found[0]

    def _create(self) -> Any:
        name = self._asked.run_name or f"{self._config.namespace}/{self._config.name}"
        tags = [{"key": key, "value": value} for key, value in self._tags().items()]
        asked = {"experiment_id": self._experiment, "run_name": name, "start_time": _now(), "tags": tags}
        return self._post("runs/create", asked)["run"]

    def _resume_run(self, run: Any) -> None:
        self._run_id = str(run["info"]["run_id"])
        data = run.get("data", {})
        self._has_params = bool(data.get("params"))
        self._last_steps = {str(one["key"]): int(one.get("step", 0)) for one in data.get("metrics", [])}

    def _tags(self) -> dict[str, str]:
        config = self._config
        commit = f"@{config.spec.model.revision}" if config.spec.model.revision else ""
        return {
            UID_TAG: config.uid,
            "finetune.job": config.name,
            "finetune.namespace": config.namespace,
            "finetune.objective": config.spec.objective.value,
            "finetune.config_sha256": config.config_sha256,
            "finetune.base_model": f"{config.spec.model.uri}{commit}",
            "finetune.dataset": config.spec.dataset.train.title,
            "finetune.output_uri": config.output_key(),
            "mlflow.source.type": "JOB",
            "mlflow.source.name": f"finetunejob/{config.namespace}/{config.name}",
        }

    def _find_experiment(self) -> str:
        name = self._asked.experiment
        found = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name}, may_be=ABSENT)
        if not found:
            made = self._ask("POST", "experiments/create", json={"name": name}, may_be=PRESENT)
            if made:
                return str(made["experiment_id"])
            found = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name})
        return str(found["experiment"]["experiment_id"])

    def _log(self, **parts: Any) -> None:
        self._post("runs/log-batch", {"run_id": self._run_id, **parts})

    def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        return self._ask("POST", path, json=content)

    def _ask(self, method: str, path: str, *, may_be: str = "", **options: Any) -> Any:
        """Return the response, or None if the server's error code is `may_be`."""
        if self._http is None:
            raise TrackerFault("not connected")
        url = f"{self._asked.endpoint.rstrip('/')}/api/2.0/mlflow/{path}"
        try:
            with self._http.stream(method, url, **options) as response:
                answer = _bounded_json(response)
        except httpx2.HTTPError as error:
            raise TrackerFault(f"{self._asked.endpoint} is unreachable ({type(error).__name__})") from None
        except RuntimeError:  # the client was closed by another thread
            raise TrackerFault("the connection was closed") from None
        word = str(answer.get("error_code", ""))
        if response.is_success:
            return answer
        if may_be and word == may_be:
            return None
        code = f" {word}" if re.fullmatch(r"[A-Z_]{1,64}", word) else ""
        fix = "; check tracking.mlflow.credentialsSecretRef" if response.status_code in {401, 403} else ""
        raise TrackerFault(f"{self._asked.endpoint} returned {response.status_code}{code} for {path}{fix}")

    def _connect(self) -> httpx2.Client:
        """Return a client that follows no redirects: they could lead to an address that jobs may not use."""
        user, password, token = (self._secret(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
        # Uncompressed, because the limit of an answer counts what arrives.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        own = self._authorities / CA_FILE
        try:
            context = httpx2.create_ssl_context()
            if own.is_file():
                context.load_verify_locations(own)
            auth = (user, password or "") if user and not token else None
            return httpx2.Client(verify=context, timeout=TIMEOUT, headers=headers, auth=auth, follow_redirects=False)
        except (OSError, ssl.SSLError, ValueError, ImportError, httpx2.InvalidURL):
            raise TrackerFault(f"no connection: {CA_FILE}, a token or a proxy's address is invalid") from None

    def _secret(self, name: str) -> str:
        path = self._secrets / name
        return path.read_text(encoding="utf-8").strip() if path.is_file() else os.environ.get(name, "")


def _bounded_json(response: httpx2.Response) -> dict[str, Any]:
    data = b""
    for part in response.iter_raw():
        data += part
        if len(data) > LARGEST_ANSWER:
            raise TrackerFault("the response is too large")
    try:
        content = json.loads(data or b"{}")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        if response.is_success:
            raise TrackerFault(NO_SERVER)
        return {}
    return content


def _now() -> int:
    return int(time.time() * 1000)
