"""Options that commands share: cluster, namespace, output format."""

# ruff: noqa: PLC0415 - the client and rich take half a second to load, which --help must not wait for

import codecs
import functools
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate

import typer

from finetune_api.text.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from finetune_client.cluster.client import Cluster


Connect = Callable[[], "Cluster"]


class Format(StrEnum):
    """Output formats for programs."""

    JSON = "json"
    YAML = "yaml"


@dataclass
class Shared:
    """Options given before the command; those after it win."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None


def complete_jobs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the jobs in the namespace, for the shell; none if the cluster is unreachable."""
    from finetune_client.errors import FineTuneError

    # What a command does not have itself; the shell runs no command, so that nothing has stored it as Shared.
    before = context.parent.params if context.parent else {}
    namespace, kube_context, kubeconfig = (
        context.params.get(name) or before.get(name) for name in ("namespace", "kube_context", "kubeconfig")
    )
    try:
        cluster = connect(context, namespace, kube_context, kubeconfig)
        return [job.name for job in cluster.list_jobs() if job.name.startswith(incomplete)]
    except FineTuneError:
        return []


def require_names(value: str | list[str]) -> str | list[str]:
    """Return the names of jobs; raise WrongUse for one that Kubernetes would refuse."""
    from finetune_client.errors import WrongUse
    from finetune_client.metadata import NAME_FIX, is_name

    for name in [value] if isinstance(value, str) else value:
        if not is_name(name):
            raise WrongUse(f"{json.dumps(name, ensure_ascii=False)} cannot be the name of a job", NAME_FIX)
    return value


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the job.", autocompletion=complete_jobs, callback=require_names),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME…", help="Names of jobs.", autocompletion=complete_jobs, callback=require_names),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace. Default: that of the kubeconfig's context.")
]
KubeContext = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[Path | None, typer.Option("--kubeconfig", help="Kubeconfig. Default: as kubectl.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="URL of the S3 endpoint. Default: AWS_ENDPOINT_URL or that of the AWS profile, else AWS. Needed for one "
        "that only the job or the operator's default names, because your keys belong to another."
    ),
]
Output = Annotated[
    Format | None, typer.Option("--output", "-o", help="Print for programs instead.", case_sensitive=False)
]


def connect(
    context: typer.Context, namespace: str | None, kube_context: str | None, kubeconfig: Path | None
) -> "Cluster":
    """Return the cluster that the options select."""
    from finetune_client.cluster import client as cluster

    shared = context.find_object(Shared) or Shared()
    return cluster.open_cluster(
        kubeconfig or shared.kubeconfig, kube_context or shared.context, namespace or shared.namespace
    )


def on_cluster(command: Callable[Concatenate[Connect, ...], None]) -> Callable[..., None]:
    """Give a command the options that select a cluster; its first argument connects to that."""

    def run(
        *,
        context: typer.Context,
        namespace: Namespace = None,
        kube_context: KubeContext = None,
        kubeconfig: Kubeconfig = None,
        **given: Any,
    ) -> None:
        command(functools.partial(connect, context, namespace, kube_context, kubeconfig), **given)

    first, *last, _ = inspect.signature(run).parameters.values()
    _, *own = inspect.signature(command).parameters.values()
    between = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    functools.update_wrapper(run, command, updated=(), assigned=("__name__", "__doc__"))
    run.__signature__ = inspect.Signature([first, last[0], *between, *last[1:]])  # type: ignore[attr-defined]
    return run


def show(*parts: "RenderableType") -> None:
    """Print as kubectl does: the terminal wraps long lines, and a pipe gets them whole."""
    from kubectl_finetune.display.page import Page

    console().print(Page(*parts), soft_wrap=True)


def console() -> "Console":
    """Return the standard output, without highlighting of numbers and paths."""
    from rich.console import Console

    found = Console(highlight=False, markup=False, emoji=False)
    if not found.width:  # COLUMNS=0, with which rich prints nothing
        found.width = 80
    return found


def say(text: str) -> None:
    """Print a remark to stderr, in one line."""
    typer.echo(printable(text), err=True)


def tell(text: str) -> None:
    """Print a line to stdout."""
    typer.echo(printable(text))


def dump(value: Any, form: Format) -> None:
    """Print a value as JSON or YAML; what a terminal would interpret is escaped, as both formats allow."""
    if form is Format.JSON:
        typer.echo(printable(json.dumps(value, indent=2, ensure_ascii=False, default=str), lines=True))
        return
    from finetune_api.manifest.yaml_document import write_document

    typer.echo(write_document(value).rstrip("\n"))


def pour(chunks: Iterable[bytes], *, raw: bool = False) -> None:
    """Write text as it arrives, with escapes for what a terminal would interpret and for bytes that are not UTF-8;
    `raw` writes the bytes unchanged."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    for chunk in itertools.chain(chunks, [b""]):
        text = decoder.decode(chunk, final=not chunk)
        sys.stdout.buffer.write(chunk if raw else printable(text, lines=True).encode())
        sys.stdout.buffer.flush()
