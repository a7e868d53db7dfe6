"""The commands of `kubectl finetune`. Each imports what it needs when it runs: help and completion stay quick."""

# ruff: noqa: PLC0415, PLR0917 - heavy modules are imported when needed; a command has many options

import functools
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune_api import __version__
from finetune_api.text.command_group import PrintableGroup
from finetune_api.text.printable import printable
from kubectl_finetune.commands.import_command import import_training
from kubectl_finetune.commands.new_command import new
from kubectl_finetune.commands.sweep_command import compare, sweep
from kubectl_finetune.errors import ExitCode
from kubectl_finetune.options import (
    Connect,
    Endpoint,
    Kubeconfig,
    KubeContext,
    Name,
    Names,
    Namespace,
    Output,
    Shared,
    console,
    dump,
    on_cluster,
    pour,
    say,
    show,
    tell,
)

EXIT_CODES = ", ".join(f"{code.value} {code.meaning}" for code in ExitCode)
app = typer.Typer(
    name="kubectl finetune",
    cls=PrintableGroup,
    help="Inspect and control FineTuneJobs: status, progress, queueing, results.",
    epilog=f"Exit codes: {EXIT_CODES}.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _examples(*lines: str) -> str:
    return "\n".join(["\b", "Examples:", *(f"  kubectl finetune {line}" for line in lines)])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def set_shared_options(
    context: typer.Context,
    namespace: Namespace = None,
    kube_context: KubeContext = None,
    kubeconfig: Kubeconfig = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Inspect and control FineTuneJobs: status, progress, queueing, results."""
    context.obj = Shared(namespace, kube_context, kubeconfig)


@app.command("list", epilog=_examples("list", "list -A", "list -l team=support -o json"))
@on_cluster
def list_jobs(
    connect: Connect,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="List the jobs of every namespace.")
    ] = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Label selector.")] = "",
    output: Output = None,
) -> None:
    """List jobs, those that have not ended first."""
    from kubectl_finetune.commands import list as listing

    cluster = connect()
    jobs = cluster.list_jobs(everywhere=everywhere, selector=selector)
    if output:
        dump({"apiVersion": "v1", "kind": "List", "items": [job.printed for job in jobs]}, output)
    elif jobs:
        show(listing.table(jobs, datetime.now(UTC), everywhere=everywhere))
        for job in jobs:
            if job.unreadable:
                say(f"note: {job.unreadable}")
    else:
        place = "any namespace" if everywhere else f"namespace {cluster.namespace}"
        say(f"no jobs in {place}" + (f" match {selector}" if selector else ""))


@app.command(epilog=_examples("describe support-bot", "describe support-bot -n team-a -o yaml"))
@on_cluster
def describe(connect: Connect, name: Name, output: Output = None) -> None:
    """Show one job on one page: its state and the reason, metrics, timeline of runs, and the next command."""
    from kubectl_finetune.commands import describe as description

    cluster = connect()
    job = cluster.get_job(name)
    if output:
        dump(job.printed, output)
    else:
        show(description.job_page(job, cluster.list_events(job), datetime.now(UTC), cluster.options))


@app.command(epilog=_examples("progress support-bot", "progress support-bot > progress.log"))
@on_cluster
def progress(
    connect: Connect,
    name: Name,
    interval: Annotated[float, typer.Option(help="Seconds between two requests.", min=0.1)] = 2.0,
) -> None:
    """Follow a job until it ends: bar, time left, losses. Exit with 0 if it completes and 1 if it fails.

    If the output is not a terminal, each change is one line, and each minute without a change. The loss curves begin
    when the command starts.
    """
    from finetune_api.names import ConditionType
    from kubectl_finetune.commands import progress as following

    cluster = connect()
    is_complete = False
    with following.screen(console()) as draw:
        for job in following.changes(lambda: cluster.get_job(name), interval):
            draw(job)
            is_complete = job.status.is_true(ConditionType.COMPLETE)
    raise typer.Exit(0 if is_complete else 1)


@app.command(epilog=_examples("logs support-bot", "logs support-bot -f", "logs support-bot --preflight --tail 50"))
@on_cluster
def logs(
    connect: Connect,
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow this run and later ones until the job ends.")
    ] = False,
    preflight: Annotated[bool, typer.Option("--preflight", help="Print the log of the preflight pod.")] = False,
    rank: Annotated[int, typer.Option(help="Index of the pod, if the job has several.", min=0)] = 0,
    tail: Annotated[int | None, typer.Option(help="Number of last lines to print.", min=0)] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Start each line with its timestamp.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print the bytes of the log unchanged, with escape codes.")
    ] = False,
) -> None:
    """Print the log of the current run's pod, and with -f of the runs after it.

    Characters that a terminal would interpret are printed as escapes, for example \\u001b, also into a file or a pipe.
    """
    from finetune_api.names import Component
    from finetune_client import logs as reading

    cluster = connect()
    component = Component.PREFLIGHT if preflight else Component.TRAINER
    wanted = reading.Wanted(component, rank, tail, timestamps)
    chunks = reading.follow(cluster, name, wanted, say) if follow else reading.read(cluster, name, wanted)
    pour(chunks, raw=raw)


@app.command(epilog=_examples("report support-bot", "report support-bot --show", "report support-bot --save reports/"))
@on_cluster
def report(
    connect: Connect,
    name: Name,
    fetch: Annotated[bool, typer.Option("--show", help="Print the report (Markdown) from storage.")] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save finetune_report.md and report.html to a folder.")
    ] = None,
    endpoint: Endpoint = None,
    output: Output = None,
) -> None:
    """Show the result of a job and its location. With --show or --save, read the report from storage with your own AWS
    variables or profile (needs boto3), and verify it by the digests in the job's status.
    """
    from finetune_api.handoff import Artifact
    from finetune_client.errors import WrongUse
    from finetune_client.storage import open_storage, published
    from kubectl_finetune.commands import report as reporting
    from kubectl_finetune.commands.validate import require_folder

    if fetch and output:
        raise WrongUse(f"--show prints Markdown, and -o prints {output.value}", "give one of the two")
    cluster = connect()
    job = cluster.get_job(name)
    published(job)
    if save:
        require_folder(save, "--save")
    if fetch or save:
        storage = open_storage(job, endpoint, say)
        for path in reporting.save(storage, save) if save else []:
            say(f"saved {path}")
        if fetch:
            pour([storage.read(Artifact.REPORT)])
    if output:
        dump(reporting.result_record(job), output)
    elif not (fetch or save):
        show(reporting.result_page(job, endpoint, cluster.options))


@app.command(epilog=_examples("lineage support-bot", "lineage support-bot -o json"))
@on_cluster
def lineage(connect: Connect, name: Name, output: Output = None) -> None:
    """Show the origin of a result: rows, trainer, parents and reward models, down to the base model."""
    from kubectl_finetune.commands import lineage as tracing

    cluster = connect()
    found = tracing.origin_record(cluster.get_job(name), functools.cache(cluster.find_job))
    if output:
        dump(found, output)
    else:
        show(tracing.tree(found))


@app.command(
    epilog=_examples(
        *(f"diff support-bot support-bot-2{more}" for more in ("", " -o json", " --rows --endpoint http://minio:9000"))
    )
)
@on_cluster
def diff(
    connect: Connect,
    first: Name,
    second: Name,
    rows: Annotated[bool, typer.Option("--rows", help="Also compare the published rows, from storage.")] = False,
    endpoint: Endpoint = None,
    output: Output = None,
) -> None:
    """Compare the specs and the results of two jobs. With --rows, read their rows from storage as `report --save` does,
    and show which of them the jobs do not share.
    """
    from kubectl_finetune.commands import diff as comparing

    cluster = connect()
    left, right = cluster.get_job(first), cluster.get_job(second)
    pages = [comparing.difference_page(left, right)]
    found: dict[str, Any] = dict(comparing.differences(left, right))
    if rows:
        from finetune_client.storage import open_storage
        from kubectl_finetune.commands.diff_rows import compare_rows

        found["rows"], page = compare_rows(left, right, lambda job: open_storage(job, endpoint, say))
        pages.append(page)
    if output:
        dump(found, output)
    else:
        for page in pages:
            show(page)


app.command(
    epilog=_examples("compare -l finetune.dev/sweep=support-bot-try", "compare support-bot support-bot-2 --rows")
)(compare)


@app.command(epilog=_examples("suspend support-bot", "suspend support-bot other-bot"))
@on_cluster
def suspend(connect: Connect, jobs: Names) -> None:
    """Stop jobs and free their GPUs; a running trainer saves a checkpoint first. Nothing is lost."""
    from kubectl_finetune.commands.lifecycle import set_suspended

    set_suspended(connect(), jobs, wanted=True, report=tell)


@app.command(epilog=_examples("resume support-bot"))
@on_cluster
def resume(connect: Connect, jobs: Names) -> None:
    """Resume suspended jobs from their last checkpoint."""
    from kubectl_finetune.commands.lifecycle import set_suspended

    set_suspended(connect(), jobs, wanted=False, report=tell)


@app.command(epilog=_examples("cancel support-bot", "cancel support-bot --yes"))
@on_cluster
def cancel(
    connect: Connect, jobs: Names, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not prompt.")] = False
) -> None:
    """Delete jobs with their pods, logs and history. Files in storage stay, checkpoints too. To keep a job and continue
    it later, suspend it. A job that has ended is a record and is not deleted.
    """
    from finetune_client.errors import WrongUse
    from kubectl_finetune.commands.lifecycle import delete_jobs

    def is_sure(question: str) -> bool:
        try:
            return yes or typer.confirm(printable(question), err=True)
        except typer.Abort:
            if sys.stdin.isatty():
                raise
            typer.echo(err=True)  # the question has no end of line
            raise WrongUse("the question has no answer, because stdin is empty", "add --yes") from None

    delete_jobs(connect(), jobs, is_sure, tell)


@app.command(
    epilog=_examples(
        "validate job.yaml",
        "validate jobs/ -o json",
        "validate job.yaml --rows rows.jsonl",
        "validate - < job.yaml",
    )
)
def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Manifests, folders of manifests, or - for stdin.")
    ],
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Also check local rows instead of dataset.train; repeatable."),
    ] = None,
    rows_out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep accepted.jsonl, rejected.jsonl and summary.json.")
    ] = None,
    output: Output = None,
) -> None:
    """Check manifests without a cluster: fields, values and the rules between fields, as the API server would.

    With --rows also check the dataset, as preflight would. This needs finetune-trainer on this machine:
    pip install '.[check]' in a clone of the operator's repository.
    """
    from finetune_client.errors import WrongUse
    from kubectl_finetune.commands import validate as checking

    if rows_out and not rows:
        raise WrongUse("--rows-out needs --rows, whose result it keeps", "add --rows FILE")
    verdict = checking.check_files(checking.read_files(files))
    if output:
        dump(verdict.to_wire(), output)
    else:
        for note in verdict.notes:
            say(f"note: {note}")
        for problem in verdict.problems:
            typer.echo(problem.text())
        for one in (*verdict.jobs, *verdict.releases) if not verdict.problems else []:
            tell(f"{checking.name_of(one)} is valid")
    if verdict.problems:
        raise typer.Exit(1)
    if rows:
        raise typer.Exit(checking.check_rows(verdict.jobs, rows, rows_out, is_for_programs=output is not None))


app.command(
    epilog=_examples(
        "new support-bot",
        "new support-bot --model hf://HuggingFaceTB/SmolLM2-135M-Instruct --data s3://data/support/ "
        "--result s3://models/support-bot",
        "new preferences --objective DPO -f preferences.yaml",
    )
)(new)


app.command(
    epilog=_examples(
        "sweep job.yaml --set hyperparameters.learningRate=5e-5,1e-4,2e-4",
        "sweep job.yaml --set tuning.lora.rank=8,32 --set hyperparameters.numTrainEpochs=1,3 -f - | kubectl apply -f -",
    )
)(sweep)


app.command(
    "import",
    epilog=_examples(
        "import qlora.yml --result s3://models/support-bot",
        "import qlora.yml --model hf://owner/name --data s3://data/rows/ --gpus 8 -f job.yaml",
        "import request.json --from openai -o json",
    ),
)(import_training)
