"""Push a published result to the hub of `output.hub`: after its manifest is proven, and never at its cost."""

import logging
import shutil

from finetune_api.handoff import Artifact, JobConfig, Outcome, Report
from finetune_api.output import HubPush, Merge
from finetune_api.status import Artifacts
from finetune_api.tuning import Method
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.publishing.published_files import collect_files, explain_failed_push
from finetune_trainer.storage.hub.uris import connect_output_hub

logger = logging.getLogger(__name__)

RETRY_SECONDS = 180.0
"""How long a push is retried; the result is published, and a GPU may be held."""


def check_hub_output(run: RunContext) -> None:
    """Raise if the result could not be pushed: a token without the right, or a repository that must not get it."""
    output, config = run.config.spec.output.hub, run.config
    if output is None or config.is_local:
        return
    from finetune_trainer.storage.hub.push import HubPusher  # noqa: PLC0415 - only jobs with a hub pay for it

    pusher = HubPusher(connect_output_hub(config.spec), output, run.stop, on_work=run.on_work)
    pusher.check(is_model=_will_push_model(config))


def push_result(run: RunContext, report: Report) -> Report:
    """Push the published result, if the job asks for it; return the report with the commit, or with the failure.

    Only SIGTERM is raised: the next run finds the result and pushes it. Any other failure leaves the result as it is.
    """
    output, config = run.config.spec.output.hub, run.config
    if output is None or report.artifacts is None or report.outcome not in {Outcome.PUBLISHED, Outcome.ADOPTED}:
        return report
    if config.is_local:
        logger.warning("output.hub: a run on this machine pushes nothing: use `hf upload %s FOLDER`", output.repo)
        return report
    run.reporter.set_stage("Publishing")
    try:
        push = _push(run, report.artifacts)
        logger.info("output.hub: %s has the result at commit %s", push.repo, push.commit)
    except Stopped:
        raise
    except (TrainerError, OSError) as error:
        message = explain_failed_push(error)
        logger.warning("output.hub: the result is published, but not pushed: %s", message)
        push = HubPush(repo=output.repo, revision=output.revision, message=message)
    return report.model_copy(update={"artifacts": report.artifacts.model_copy(update={"hub": push})})


def _push(run: RunContext, artifacts: Artifacts) -> HubPush:
    output, config = run.config.spec.output.hub, run.config
    if output is None:
        raise ValueError("the job has no output.hub")
    from finetune_trainer.storage.hub.push import HubPusher  # noqa: PLC0415 - only jobs with a hub pay for it

    pusher = HubPusher(connect_output_hub(config.spec), output, run.stop, RETRY_SECONDS, run.on_work)
    folder = Artifact.MERGED if artifacts.merged_uri else Artifact.ADAPTER
    scratch = run.workspace / "hub-push"
    try:
        files = collect_files(run, folder, scratch)
        title = f"FineTuneJob {config.namespace}/{config.name}, manifest {(artifacts.manifest_sha256 or '')[:12]}"
        pushed = pusher.push(files, title, is_model=folder is Artifact.MERGED)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return HubPush(repo=output.repo, revision=output.revision, commit=pushed.commit, url=pushed.url)


def _will_push_model(config: JobConfig) -> bool | None:
    """Return whether the job publishes a full model; None if the method is not chosen yet."""
    if config.spec.output.merge is not Merge.NONE:
        return True
    method = config.spec.tuning.method
    return None if method is Method.AUTO else method is Method.FULL
