"""The options of `import`; what it does is in `import_file.py`, which is loaded when it runs."""

# ruff: noqa: PLC0415, PLR0917 - heavy modules are imported when needed; a command has many options

from pathlib import Path
from typing import Annotated

import typer

from kubectl_finetune.errors import ExitCode
from kubectl_finetune.options import Output, dump, say


def import_training(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Training file, or - for stdin.")],
    source: Annotated[
        str, typer.Option("--from", help="axolotl, llama-factory, trl or openai. Default: recognised by its keys.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the job. Default: that of the file.")] = "",
    model: Annotated[str, typer.Option(help="hf://owner/name or s3://bucket/path, in place of the file's.")] = "",
    data: Annotated[str, typer.Option(help="Rows to train on, as s3://bucket/path or hf://datasets/owner/name.")] = "",
    validation: Annotated[str, typer.Option(help="Held-out rows, written as --data.")] = "",
    result: Annotated[str, typer.Option(help="s3://bucket/path for adapter and report.")] = "",
    objective: Annotated[str, typer.Option(help="Objective, if the file does not show it.")] = "",
    gpus: Annotated[
        int | None, typer.Option(help="Number of GPUs of the training, a factor of the batch.", min=0, max=512)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if anything that changes the training is not carried.")
    ] = False,
    target: Annotated[
        Path | None, typer.Option("--file", "-f", help="File to write. Default: print the manifest.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    output: Output = None,
) -> None:
    """Convert a training file of axolotl, LLaMA-Factory or TRL, or a request of OpenAI's API, to a manifest.

    What cannot be carried is listed on stderr with the reason and what to do. Nothing of the file is run, and secrets
    are not printed.
    """
    from kubectl_finetune.commands.import_file import import_file
    from kubectl_finetune.commands.new import deliver
    from kubectl_finetune.importing.draft import Options

    done = import_file(file, source, Options(name, model, data, validation, result, objective, gpus))
    is_refused = bool(done.refused) or (strict and done.changes_training)
    if output:
        dump(done.to_wire(), output)
    else:
        for part in done.page():
            typer.echo(part, err=True)
        if is_refused and not done.refused:
            say("error: --strict, and the training would be another one")
    if not is_refused and (target or not output):
        deliver(done.text, target or Path("-"), force=force)
    if is_refused or done.problems:
        raise typer.Exit(ExitCode.FAILED)
