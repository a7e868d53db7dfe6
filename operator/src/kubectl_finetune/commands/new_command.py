"""The options of `new`; what it does is in `new.py`, which is loaded when it runs."""

# ruff: noqa: PLC0415, PLR0917 - heavy modules are imported when needed; a command has many options

from pathlib import Path
from typing import Annotated

import typer

from kubectl_finetune.options import Namespace, Shared


def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the job.")],
    model: Annotated[str | None, typer.Option(help="hf://owner/name or s3://bucket/path.")] = None,
    data: Annotated[str | None, typer.Option(help="s3://bucket/path or hf://datasets/owner/name.")] = None,
    result: Annotated[str | None, typer.Option(help="s3://bucket/path for adapter and report.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Instruction, Chat, DPO, KTO, RewardModel, RLHF, Distillation or DomainAdaptation."),
    ] = None,
    method: Annotated[str, typer.Option(help="Auto, QLoRA, LoRA or Full.")] = "Auto",
    secret: Annotated[str, typer.Option(help="Secret with the storage credentials.")] = "s3-credentials",  # noqa: S107 - a name
    endpoint: Annotated[str, typer.Option(help="URL of the S3 endpoint. Default: the operator's, else AWS.")] = "",
    gpus: Annotated[int, typer.Option(help="Number of GPUs; 0 trains on the CPU.", min=0, max=16)] = 1,
    validation_percent: Annotated[
        int, typer.Option(help="Percent of the rows to hold out; 0 = none.", min=0, max=50)
    ] = 10,
    queue: Annotated[str, typer.Option(help="Kueue LocalQueue.")] = "",
    namespace: Namespace = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File to write, or - for stdout. Default: NAME.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a starter manifest with comments. At a terminal, prompt for the options that are missing."""
    from kubectl_finetune.commands import new as writing

    shared = context.find_object(Shared)
    asked = writing.ask({"objective": objective, "model": model, "data": data, "result": result})
    path = file or Path(f"{name}.yaml")
    text = writing.write(
        writing.Answers(
            name=name,
            file="" if str(path) == "-" else str(path),
            **asked,
            namespace=namespace or (shared and shared.namespace) or "",
            method=method,
            secret=secret,
            endpoint=endpoint,
            gpus=gpus,
            validation_percent=validation_percent,
            queue=queue,
        )
    )
    writing.deliver(text, path, force=force)
