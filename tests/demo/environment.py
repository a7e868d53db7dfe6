"""How a client reaches a deployed cluster, remembered for each kind of cluster."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

STATE = Path(os.environ.get("FINETUNE_STATE_DIR", Path.home() / ".cache" / "finetune-operator"))
ENVIRONMENTS = STATE / "environments"


@dataclass(frozen=True)
class Environment:
    """What a client needs: a kubeconfig, S3 from outside and from inside, the images, and where kubectl is."""

    cluster: str
    kubeconfig: str
    s3_endpoint: str
    s3_endpoint_in_cluster: str
    access_key: str
    secret_key: str
    operator_image: str
    trainer_image: str
    preflight_image: str = ""
    """Empty: the trainer's."""
    programs: str = ""
    directory: str = ""
    """State folder of the cluster of tests/cluster, for what only its owner can do to it."""

    def variables(self) -> dict[str, str]:
        """The settings as environment variables, as `make env` exports them."""
        return {
            "KUBECONFIG": self.kubeconfig,
            "PATH": f"{self.programs}:{os.environ['PATH']}" if self.programs else os.environ["PATH"],
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FINETUNE_S3_ENDPOINT_IN_CLUSTER": self.s3_endpoint_in_cluster,
            "FINETUNE_OPERATOR_IMAGE": self.operator_image,
            "FINETUNE_TRAINER_IMAGE": self.trainer_image,
            **({"FINETUNE_PREFLIGHT_IMAGE": self.preflight_image} if self.preflight_image else {}),
            **({"FINETUNE_CLUSTER_DIR": self.directory} if self.directory else {}),
        }

    def save(self) -> None:
        """Store the environment for `make env` and `make e2e`, as the last one that was deployed."""
        ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
        file = _file(self.cluster)
        file.touch(mode=0o600)
        file.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def load(asked: str) -> Environment:
    """The environment of that cluster, with `auto` of the last deploy; exits with what to run where there is none."""
    found = sorted(ENVIRONMENTS.glob("*.json"), key=lambda file: file.stat().st_mtime)
    if asked != "auto":
        found = [file for file in found if file == _file(asked)]
    if not found:
        which = "" if asked == "auto" else f" with CLUSTER={asked}"
        sys.exit(f"nothing is deployed{which}: run `make demo{which[5:]}` or `make deploy{which[5:]}`")
    return Environment(**json.loads(found[-1].read_text(encoding="utf-8")))


def is_deployed(cluster: str) -> bool:
    """Whether a deploy there came to its end."""
    return _file(cluster).exists()


def forget(cluster: str) -> None:
    """Nothing is deployed there any more."""
    _file(cluster).unlink(missing_ok=True)


def _file(cluster: str) -> Path:
    return ENVIRONMENTS / f"{cluster}.json"
