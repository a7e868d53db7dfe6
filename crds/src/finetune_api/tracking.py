"""Trackers that receive metrics during training, and event files published with the result."""

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from finetune_api.blocks import Block, Endpoint, SecretRef, cel, with_rules

Name = Annotated[str, StringConstraints(min_length=1, max_length=250, pattern=r"^[^\x00-\x1f\x7f]+$")]
Slug = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class WandbMode(StrEnum):
    """Whether metrics are sent to W&B during training."""

    ONLINE = "Online"
    OFFLINE = "Offline"


class MlflowTracking(Block):
    """A run of an MLflow tracking server."""

    endpoint: Endpoint
    """URL of the tracking server, for example `http://mlflow.mlflow:5000`."""
    experiment: Name
    """Name of the experiment; created if it does not exist (at most 250 characters)."""
    run_name: Name | None = None
    """Name of the run (at most 250 characters). Default: namespace and name of the job."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`.
    Default: no credentials."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""


class WandbTracking(Block):
    """A run of Weights & Biases."""

    model_config = with_rules(
        cel(
            "(self.mode == 'Offline') != has(self.credentialsSecretRef)",
            "credentialsSecretRef is required with mode Online and refused with mode Offline: set or remove it",
            ".credentialsSecretRef",
        ),
        cel(
            "self.mode != 'Offline' || (!has(self.endpoint) && !has(self.caSecretRef))",
            "endpoint and caSecretRef have no effect with mode Offline: remove them, and give the server to "
            "`wandb sync`",
            ".endpoint",
        ),
    )

    project: Slug
    """Project of the run (at most 128 characters)."""
    entity: Slug | None = None
    """User or team that owns the project (at most 128 characters). Default: the default entity of the API key."""
    mode: WandbMode = WandbMode.ONLINE
    """`Online` sends metrics during training. `Offline` sends nothing: the run is published under `wandb/`, for
    `wandb sync`. Default: `Online`."""
    endpoint: Endpoint | None = None
    """URL of a self-hosted W&B server. Default: `https://api.wandb.ai`."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the key `WANDB_API_KEY`; required with mode `Online`."""
    ca_secret_ref: SecretRef | None = None
    """Secret whose key `ca.crt` holds the certificate authority (PEM) of the endpoint.
    Default: the image's authorities."""


class Tracking(Block):
    """Trackers that receive the metrics of the training. An unreachable tracker neither fails nor delays the job."""

    mlflow: MlflowTracking | None = None
    """A run of an MLflow tracking server; later attempts continue it. Default: none."""
    wandb: WandbTracking | None = None
    """A run of Weights & Biases; later attempts continue it. Default: none."""
    tensorboard: bool = False
    """Publish event files for TensorBoard under `tensorboard/`. Default: false."""
