"""Push a published result to a hub, a registry, both or none: after its manifest is proven, and never at its cost."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from finetune_api.handoff import Outcome, Report
from finetune_api.output import HubPush, RegistryPush
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.publishing.hub_push import check_hub, push_to_hub
from finetune_trainer.publishing.oci_push import check_registry, push_to_registry
from finetune_trainer.publishing.published_files import explain_failed_push

Push = TypeVar("Push", HubPush, RegistryPush)
logger = logging.getLogger(__name__)


def check_pushes(run: RunContext) -> None:
    """Raise if the result could not be pushed."""
    output = run.config.spec.output
    if output.hub and not run.config.is_local:
        check_hub(run, output.hub)
    if output.oci and not run.config.is_local:
        check_registry(run, output.oci)


def push_published(run: RunContext, report: Report) -> Report:
    """Push the published result where the job asks for it; return the report with what was pushed, or why not.

    Only SIGTERM is raised: the next run finds the result and pushes it. Any other failure leaves the result as it is.
    """
    hub, oci, artifacts = run.config.spec.output.hub, run.config.spec.output.oci, report.artifacts
    if artifacts is None or report.outcome not in {Outcome.PUBLISHED, Outcome.ADOPTED}:
        return report
    if run.config.is_local:
        commands = {"hub": hub and f"hf upload {hub.repo} FOLDER", "oci": oci and f"oras push {oci.repository} FILES"}
        for name, command in commands.items():
            if command:
                logger.warning("output.%s: a run on this machine pushes nothing: use `%s`", name, command)
        return report
    pushed: dict[str, HubPush | RegistryPush] = {}
    if hub:
        push = HubPush(repo=hub.repo, revision=hub.revision)
        pushed["hub"] = _try(run, "output.hub", push, partial(push_to_hub, run, hub, artifacts))
    if oci:
        tag = oci.tag_of(run.config.name)
        to_registry = RegistryPush(repository=oci.repository, tag=tag)
        pushed["oci"] = _try(run, "output.oci", to_registry, partial(push_to_registry, run, oci, artifacts, tag))
    return report.model_copy(update={"artifacts": artifacts.model_copy(update=pushed)})


def _try(run: RunContext, field: str, push: Push, work: Callable[[], dict[str, str]]) -> Push:
    """Return the push with where the work has put the result, or with why it failed."""
    run.reporter.set_stage("Publishing")
    try:
        found = work()
    except Stopped:
        raise
    except (TrainerError, OSError) as error:
        message = explain_failed_push(error)
        logger.warning("%s: the result is published, but not pushed: %s", field, message)
        return push.model_copy(update={"message": message})
    logger.info("%s: the result is pushed: %s", field, ", ".join(found.values()))
    return push.model_copy(update=found)
