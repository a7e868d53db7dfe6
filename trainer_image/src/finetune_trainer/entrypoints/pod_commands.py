"""The commands that the operator starts in pods; each imports what it needs when it runs."""

# ruff: noqa: PLC0415 - heavy modules are imported when they are needed

import os
from pathlib import Path
from typing import Annotated

import typer

from finetune_api import handoff
from finetune_trainer.entrypoints.termination import RunState

Config = Annotated[Path, typer.Option("--config", help="The job's configuration (JSON), as the operator mounts it.")]
WorkspaceDir = Annotated[Path, typer.Option("--workspace", help="Scratch space for model, rows and result.")]
Port = Annotated[int, typer.Option(help="Port of /progress, /metrics and /healthz; 0 = any.", min=0, max=65535)]
RendezvousPort = Annotated[int, typer.Option(hidden=True, help="Port of the first pod for the rendezvous.")]
PeerLinkPort = Annotated[int, typer.Option(hidden=True, help="Port of the first pod that the other pods connect to.")]
PeerToken = Annotated[Path, typer.Option(hidden=True, help="File with the token of this attempt's pods.")]
TerminationLog = Annotated[Path, typer.Option(help="File for the report (JSON), if it exists.")]


def preflight_command(
    context: typer.Context,
    config: Config = Path(handoff.CONFIG_DIR) / handoff.CONFIG_FILE,
    workspace: WorkspaceDir = Path(handoff.WORKSPACE_DIR),
    port: Port = handoff.PROGRESS_PORT,
    termination_log: TerminationLog = Path(handoff.TERMINATION_LOG),
) -> None:
    """Check storage, model and rows of a job without a GPU. Runs in the preflight pod."""
    from finetune_trainer.entrypoints import pod

    state: RunState = context.obj
    state.termination_log = termination_log
    raise typer.Exit(state.finish(pod.run_preflight(state, config, workspace, port)))


def train_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    config: Config = Path(handoff.CONFIG_DIR) / handoff.CONFIG_FILE,
    workspace: WorkspaceDir = Path(handoff.WORKSPACE_DIR),
    port: Port = handoff.PROGRESS_PORT,
    termination_log: TerminationLog = Path(handoff.TERMINATION_LOG),
    rendezvous_port: RendezvousPort = handoff.RENDEZVOUS_PORT,
    peer_link_port: PeerLinkPort = handoff.PEER_LINK_PORT,
    peer_token: PeerToken = Path(handoff.PEER_TOKEN_DIR) / handoff.PEER_TOKEN_FILE,
) -> None:
    """Train and publish a job whose preflight has passed. Runs in the trainer pod; if the job has several
    processes, it starts those of its pod."""
    from finetune_trainer.distributed.rank_layout import ENV_THREADS, build_layout
    from finetune_trainer.entrypoints import pod

    state: RunState = context.obj
    state.termination_log = termination_log
    layout = build_layout(pod.read_config(config, state), rendezvous_port, peer_link_port)
    if layout.size == 1:
        os.environ.setdefault(ENV_THREADS, str(layout.threads))
        raise typer.Exit(state.finish(pod.run_training(state, config, workspace, port)))
    from finetune_trainer.entrypoints.launcher import launch

    code = launch(state, layout, config_path=config, port=port, workspace=workspace, peer_token=peer_token)
    raise typer.Exit(code)


def finish_command(
    context: typer.Context,
    config: Config = Path(handoff.CONFIG_DIR) / handoff.CONFIG_FILE,
    workspace: WorkspaceDir = Path(handoff.WORKSPACE_DIR),
    port: Port = handoff.PROGRESS_PORT,
    termination_log: TerminationLog = Path(handoff.TERMINATION_LOG),
) -> None:
    """Merge, validate and publish a training that `train` has stored; needs no GPU. Runs in the merge pod."""
    from finetune_trainer.distributed.rank_layout import ENV_THREADS, count_cores
    from finetune_trainer.entrypoints import pod

    state: RunState = context.obj
    state.termination_log = termination_log
    resources = pod.read_config(config, state).spec.resources
    os.environ.setdefault(ENV_THREADS, str(count_cores(resources.merge or resources)))
    raise typer.Exit(state.finish(pod.run_finish(state, config, workspace, port)))


def rank_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    config: Config = Path(handoff.CONFIG_DIR) / handoff.CONFIG_FILE,
    workspace: WorkspaceDir = Path(handoff.WORKSPACE_DIR),
    port: Port = handoff.PROGRESS_PORT,
    termination_log: TerminationLog = Path(handoff.TERMINATION_LOG),
    micro_batch: Annotated[int | None, typer.Option(help="Rows of a micro-batch, after one did not fit.")] = None,
) -> None:
    """Run one of several training processes of a pod; started by `train`."""
    from finetune_trainer.entrypoints import rank

    state: RunState = context.obj
    state.termination_log = termination_log
    state.exits_immediately = True
    report = rank.train_rank(state, config, workspace, port, micro_batch)
    if report:
        raise typer.Exit(state.finish(report))
