"""The trackers of a training: W&B, MLflow and TensorBoard."""

from kubectl_finetune.importing import values
from kubectl_finetune.importing.draft import Draft
from kubectl_finetune.importing.files import has_secret
from kubectl_finetune.importing.shared import OTHER_TRACKER


def put_trackers(draft: Draft, key: str = "report_to") -> None:
    """Set the trackers that transformers' `report_to` names."""
    if draft.get(key) is None:
        return
    for name in values.words(draft.get(key)):
        if name in {"none", "all"}:
            continue
        if name == "tensorboard":
            draft.set("tracking.tensorboard", True, key)
        elif name == "wandb":
            put_wandb(draft, key, "huggingface")
        elif name == "mlflow":
            draft.lose(key, "the server of MLflow is not in the file", "set tracking.mlflow", changes_training=False)
        else:
            draft.lose(key, OTHER_TRACKER, changes_training=False)


def put_wandb(draft: Draft, key: str, project: str, entity: str = "", *, is_offline: bool = False) -> None:
    """Set a run of W&B, whose API key has to be in a Secret of the name `wandb`; one that is offline needs none."""
    draft.set("tracking.wandb.project", project, key)
    if entity:
        draft.set("tracking.wandb.entity", entity, key)
    if is_offline:
        draft.set("tracking.wandb.mode", "Offline", key)
        return
    draft.set("tracking.wandb.credentialsSecretRef", {"name": "wandb"}, key)
    fix = "create it: a Secret named wandb with the key WANDB_API_KEY"
    draft.lose(key, "its API key is read from a Secret", fix, changes_training=False)


def put_mlflow(draft: Draft, experiment: str) -> None:
    """Set a run of MLflow; a URL with a password is not copied."""
    key = "mlflow_tracking_uri"
    url = str(draft.get(key))
    if has_secret(url):
        draft.lose(key, "its password belongs in a Secret", "set tracking.mlflow", changes_training=False)
        return
    draft.set("tracking.mlflow.endpoint", url, key)
    draft.set("tracking.mlflow.experiment", experiment, key)
