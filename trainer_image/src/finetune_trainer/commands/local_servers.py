"""Trackers and reward servers of a run on this machine, whose keys are those of the environment."""

import os
from collections.abc import Collection

from finetune_api.endpoints import is_endpoint
from finetune_api.handoff import REWARD_TOKEN_FILE, JobConfig
from finetune_api.tracking import WandbMode
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.monitoring.tracking.wandb import KEY as WANDB_KEY
from finetune_trainer.monitoring.tracking.wandb import SERVER as WANDB_SERVER
from finetune_trainer.monitoring.tracking.wandb import SERVER_SETTING as WANDB_SETTING
from finetune_trainer.storage.own_servers import OwnKey, explain_withheld

MLFLOW_SETTING = "MLFLOW_TRACKING_URI"
REWARD_SETTING = "REWARD_ENDPOINT"
MLFLOW_KEYS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME")


def require_own_trackers(config: JobConfig, named: Collection[str]) -> None:
    """Raise if a tracker of the job would get the key of another server; a run without its tracker would end first."""
    tracking, problems = config.spec.tracking, list[str | None]()
    if tracking and tracking.mlflow and (key := next((one for one in MLFLOW_KEYS if os.environ.get(one)), None)):
        own = os.environ.get(MLFLOW_SETTING, "")  # may also be a folder, a database or have a password
        known = OwnKey(key, own if is_endpoint(own) else None, MLFLOW_SETTING)
        problems.append(explain_withheld(known, "spec.tracking.mlflow.endpoint", tracking.mlflow.endpoint, named))
    if tracking and tracking.wandb and tracking.wandb.mode is WandbMode.ONLINE and os.environ.get(WANDB_KEY):
        own, asked = os.environ.get(WANDB_SETTING) or WANDB_SERVER, tracking.wandb.endpoint
        if not is_endpoint(own):
            raise InvalidConfig(f"{WANDB_SETTING} is not a URL: write https://host")
        field = "spec.tracking.wandb.endpoint" if asked else WANDB_SETTING
        known = OwnKey(WANDB_KEY, own, WANDB_SETTING)
        problems.append(explain_withheld(known, field, asked or own, named))
    for problem in filter(None, problems):
        raise InvalidConfig(f"{config.name}: {problem}; or remove the tracker from the job")


def require_own_graders(config: JobConfig, named: Collection[str]) -> None:
    """Raise if a server that scores answers would get a token that is not its own, or none although the job has one."""
    for at, reward in enumerate(config.spec.rewards):
        if reward.service is None or reward.service.credentials_secret_ref is None:
            continue
        field = f"spec.rlhf.rewards[{at}].service"
        if not os.environ.get(REWARD_TOKEN_FILE):
            missing = f"{field}.credentialsSecretRef is a Secret of a cluster: set {REWARD_TOKEN_FILE} on this machine"
            raise InvalidConfig(f"{config.name}: {missing}")
        own = os.environ.get(REWARD_SETTING, "")
        known = OwnKey(REWARD_TOKEN_FILE, own if is_endpoint(own) else None, REWARD_SETTING)
        if problem := explain_withheld(known, f"{field}.endpoint", reward.service.endpoint, named):
            raise InvalidConfig(f"{config.name}: {problem}")
