"""Where a published result is pushed to in addition to its storage: a hub, a registry, both or none."""

from finetune_api.handoff import Report
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.publishing.hub_push import check_hub_output, push_result
from finetune_trainer.publishing.oci_push import check_registry_output, push_to_registry


def check_pushes(run: RunContext) -> None:
    """Raise if the result could not be pushed."""
    check_hub_output(run)
    check_registry_output(run)


def push_published(run: RunContext, report: Report) -> Report:
    """Push the published result where the job asks for it; return the report with what was pushed, or why not."""
    return push_to_registry(run, push_result(run, report))
