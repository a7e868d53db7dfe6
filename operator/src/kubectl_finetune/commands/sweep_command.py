"""The options of `sweep` and `compare`; what they do is in modules that are loaded when they run."""

# ruff: noqa: PLC0415, PLR0917 - heavy modules are imported when needed; a command has many options

from pathlib import Path
from typing import Annotated

import typer

from kubectl_finetune.errors import ExitCode
from kubectl_finetune.options import (
    Connect,
    Endpoint,
    Output,
    complete_jobs,
    dump,
    on_cluster,
    require_names,
    say,
    show,
)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Manifest of one job, or - for stdin.")],
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="FIELD=VALUE,…", help="A field of the spec with its values; repeatable."),
    ],
    suffix: Annotated[
        str, typer.Option(help="What follows the name of the job, before a number; another sweep of it needs another.")
    ] = "try",
    target: Annotated[
        Path | None, typer.Option("--file", "-f", help="File to write, or - for stdout. Default: NAME-SUFFIX.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write variants of a job, one for each combination of the values, to apply and to rank with `compare`.

    Each has a name and an output.uri of its own (-try-1, -try-2, …) and the label finetune.dev/sweep. They share rows
    and seed, so that they are measured on the same held-out rows.
    """
    from finetune_api.names import LABEL_SWEEP
    from finetune_client.errors import WrongUse
    from kubectl_finetune.commands import sweep as sweeping
    from kubectl_finetune.commands.new import deliver
    from kubectl_finetune.commands.validate import read_files

    if file.is_dir():
        raise WrongUse(f"{file} is a folder", "give the file of one job")
    chosen = [sweeping.parse_setting(one) for one in settings]
    found = sweeping.make_sweep(next(read_files([file])), chosen, suffix)
    for problem in found.problems:
        typer.echo(problem.text(), err=True)
    if found.problems:
        raise typer.Exit(ExitCode.FAILED)
    for note in found.notes:
        say(f"note: {note}")
    deliver(found.text(), target or Path(f"{found.name}.yaml"), force=force)
    count = f"{len(found.variants)} {'job' if len(found.variants) == 1 else 'jobs'}"
    place = f" -n {found.namespace}" if found.namespace else ""
    say(f"{count}; rank them with: kubectl finetune compare -l {LABEL_SWEEP}={found.name}{place}")


@on_cluster
def compare(
    connect: Connect,
    jobs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME…",
            help="Names of jobs.",
            autocompletion=complete_jobs,
            callback=lambda names: require_names(names or []),
        ),
    ] = None,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Label selector, in place of names.")] = "",
    rows: Annotated[bool, typer.Option("--rows", help="Also compare row by row, from storage.")] = False,
    endpoint: Endpoint = None,
    output: Output = None,
) -> None:
    """Rank jobs by their held-out figures, with the fields in which they differ.

    Notes on stderr say whether the intervals separate the best one from the others, or why the figures of the jobs
    cannot be compared. With --rows, read the figures of single rows from storage as `report --save` does: differences
    row by row have much narrower intervals.
    """
    from finetune_client.errors import NotFound, WrongUse
    from finetune_client.storage import open_storage
    from kubectl_finetune.commands import compare as comparing

    if bool(jobs) == bool(selector):
        raise WrongUse("compare needs names or a selector", "kubectl finetune compare -l finetune.dev/sweep=NAME-try")
    cluster = connect()
    names = dict.fromkeys(jobs or [])
    found = cluster.list_jobs(selector=selector) if selector else [cluster.get_job(name) for name in names]
    if not found:
        raise NotFound(f"no jobs in namespace {cluster.namespace} match {selector}", "kubectl finetune list")
    measured = comparing.read_measured(found, lambda job: open_storage(job, endpoint, say)) if rows else None
    ranking = comparing.rank(found, measured)
    if output:
        dump(ranking.to_wire(), output)
        return
    show(comparing.ranking_table(ranking))
    for sentence in ranking.sentences:
        say(f"note: {sentence}")
