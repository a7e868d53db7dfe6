"""Push a published result to the hub of `output.hub`."""

import shutil

from finetune_api.handoff import Artifact, JobConfig
from finetune_api.output import HubOutput, Merge
from finetune_api.status import Artifacts
from finetune_api.tuning import Method
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.publishing.published_files import collect_files
from finetune_trainer.storage.hub.uris import connect_output_hub

RETRY_SECONDS = 180.0
"""How long a push is retried; the result is published, and a GPU may be held."""


def check_hub(run: RunContext, output: HubOutput) -> None:
    """Raise if the result could not be pushed: a token without the right, or a repository that must not get it."""
    from finetune_trainer.storage.hub.push import HubPusher  # noqa: PLC0415 - only jobs with a hub pay for it

    pusher = HubPusher(connect_output_hub(run.config.spec), output, run.stop, on_work=run.on_work)
    pusher.check(is_model=_will_push_model(run.config))


def push_to_hub(run: RunContext, output: HubOutput, artifacts: Artifacts) -> dict[str, str]:
    """Push the full model, or without one the adapter; return the commit and its address."""
    from finetune_trainer.storage.hub.push import HubPusher  # noqa: PLC0415 - only jobs with a hub pay for it

    config, scratch = run.config, run.workspace / "hub-push"
    pusher = HubPusher(connect_output_hub(config.spec), output, run.stop, RETRY_SECONDS, run.on_work)
    folder = Artifact.MERGED if artifacts.merged_uri else Artifact.ADAPTER
    try:
        files = collect_files(run, folder, scratch)
        title = f"FineTuneJob {config.namespace}/{config.name}, manifest {(artifacts.manifest_sha256 or '')[:12]}"
        pushed = pusher.push(files, title, is_model=folder is Artifact.MERGED)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"commit": pushed.commit, "url": pushed.url}


def _will_push_model(config: JobConfig) -> bool | None:
    """Return whether the job publishes a full model; None if the method is not chosen yet."""
    if config.spec.output.merge is not Merge.NONE:
        return True
    method = config.spec.tuning.method
    return None if method is Method.AUTO else method is Method.FULL
