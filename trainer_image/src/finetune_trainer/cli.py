"""The commands of `finetune-trainer`. Each imports what it needs when it runs, so that preflight starts in a second."""

# ruff: noqa: PLC0415 - heavy modules are imported when they are needed

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune_api import handoff
from finetune_api.endpoints import is_endpoint
from finetune_api.inputs.sources import LongRows
from finetune_api.spec import DatasetFormat, Method, Objective, Precision
from finetune_api.text.command_group import PrintableGroup
from finetune_api.text.printable import printable
from finetune_trainer.data.formats.export import ExportFormat
from finetune_trainer.entrypoints import pod_commands
from finetune_trainer.entrypoints.release_pod import release_command
from finetune_trainer.entrypoints.termination import RunState

EXIT_CODES = ", ".join(f"{code.value} {code.meaning}" for code in handoff.ExitCode)
OF_PODS = frozenset({"preflight", "train", "finish", "release", "rank"})
"""The commands that pods start; the help has them last."""


class Commands(PrintableGroup):
    """The commands, first those for people."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: name in OF_PODS)


app = typer.Typer(
    name="finetune-trainer",
    cls=Commands,
    help="Check data, estimate memory, fine-tune a language model, publish, merge and talk to it.",
    epilog=f"Exit codes: {EXIT_CODES}; 1 `verify` found a fault, 2 invalid usage.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _require_urls(given: list[str] | None) -> list[str]:
    for one in given or []:
        if not is_endpoint(one):
            raise typer.BadParameter(f"{one}: write https://host, http://host or http://host:port")
    return given or []


def _require_url(given: str | None) -> str | None:
    return _require_urls([given])[0] if given else None


SendKeysTo = Annotated[
    list[str] | None,
    typer.Option(
        "--send-keys-to",
        metavar="URL",
        help="A server that gets this machine's keys if the job names it, although they belong to another one; "
        "repeatable.",
        callback=_require_urls,
    ),
]


app.command("preflight")(pod_commands.preflight_command)
app.command("train")(pod_commands.train_command)
app.command("finish")(pod_commands.finish_command)
app.command("release")(release_command)
app.command("rank", hidden=True)(pod_commands.rank_command)


@app.command("run")
def run_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    manifest: Annotated[
        Path,
        typer.Argument(metavar="JOB.yaml", help="Manifest with one or several FineTuneJobs; parents run first."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Local folder for output.uri; several jobs each get a subfolder with their name.",
        ),
    ],
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="s3://…=DIR", help="Local folder or file to use instead of a URI; repeatable."),
    ] = None,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            metavar="NAME=DIR",
            help="The --output folder of a finished job to which the manifest refers by name; repeatable.",
        ),
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", help="Scratch space. Default: a temporary folder.")
    ] = None,
    send_keys_to: SendKeysTo = None,
) -> None:
    """Check, train and publish on this machine from a job's manifest, without a cluster or an operator.

    URIs without a --map are read from the store in the manifest or AWS_ENDPOINT_URL, with the credentials of the
    standard AWS variables or profile; hf:// URIs from the hub in the manifest or HF_ENDPOINT, with the token in
    HF_TOKEN.

    A key goes only to its own server: AWS_ENDPOINT_URL or AWS, HF_ENDPOINT or huggingface.co, MLFLOW_TRACKING_URI,
    WANDB_BASE_URL or api.wandb.ai, REWARD_ENDPOINT. If the manifest names another one, --send-keys-to must name it
    too. No token is sent over http, except to this machine.
    """
    from finetune_trainer.commands.run import RunOptions, run_jobs

    state: RunState = context.obj
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        folder = workspace or Path(scratch)
        options = RunOptions(maps or [], jobs or [], send_keys_to or [])
        done = run_jobs(state, manifest, output, options, workspace=folder)
        code = state.finish(done.report)
        for line in done.lines:
            typer.echo(printable(line), err=True)
        raise typer.Exit(code)


@app.command("check-data")
def check_data_command(  # noqa: PLR0917 - the options of a command
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE…",
            help="JSON lines, JSON, CSV, TSV (also packed), Parquet or Arrow; a folder of these; or a quoted pattern.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for accepted.jsonl, rejected.jsonl, summary.json and the files of --to. Default: none, the "
            "counts are printed."
        ),
    ] = None,
    data_format: Annotated[
        DatasetFormat,
        typer.Option("--format", help="Format of the rows; Auto detects it for each row.", case_sensitive=False),
    ] = DatasetFormat.AUTO,
    objective: Annotated[
        Objective | None,
        typer.Option(
            help="Training objective. Default: Chat; with --to, rows of every kind are accepted.",
            case_sensitive=False,
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="KNOWN=OWN,…", help="Column names as KNOWN=OWN: prompt=question,completion=answer."),
    ] = None,
    system_message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message of the rows that have none.")
    ] = None,
    to: Annotated[
        ExportFormat | None,
        typer.Option(
            help="Also write the accepted rows in this format to converted.jsonl; rows that do not fit it go to "
            "unconverted.jsonl with the reason.",
            case_sensitive=False,
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a model: also check chat template, special tokens and lengths.")
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Template in place of the model's own, with --model: ChatML, Alpaca, Vicuna, Completion, or a file.",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIABLE=VALUE,…", help="Variables of the template: enable_thinking=false."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Maximum sequence length in tokens, with --model.", min=16)] = 2048,
    long_rows: Annotated[
        LongRows,
        typer.Option(help="What is done with longer rows, with --model: Truncate or Skip.", case_sensitive=False),
    ] = LongRows.TRUNCATE,
    max_rejected_percent: Annotated[
        int, typer.Option(help="Maximum percentage of malformed rows.", min=0, max=100)
    ] = 20,
    show: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Print the first N accepted rows as the model reads them, what is trained between ⟦ and ⟧, "
            "with --model.",
            min=0,
        ),
    ] = 0,
    job_fields: Annotated[
        bool, typer.Option("--job-fields", help="Name a job's fields in messages, not options.", hidden=True)
    ] = False,
) -> None:
    """Check rows as preflight does; with --out, write those to train on, and convert between formats.

    Exits with 65 if a job would fail; the files are written anyway.
    """
    from finetune_trainer.commands.check_data import Request, check_local_rows, parse_columns, parse_kwargs

    if model is None and (chat_template or chat_template_kwargs):
        raise typer.BadParameter("--chat-template and its variables need --model, whose tokens the template is made of")
    if model is None and show:
        raise typer.BadParameter("--show needs --model, whose chat template writes the rows")
    if model is None and long_rows is LongRows.SKIP:
        raise typer.BadParameter("--long-rows needs --model, whose tokens are counted")
    if model is not None and to is not None and objective is None:
        raise typer.BadParameter("with --to, --model needs --objective: the length of a row depends on the objective")
    if to is not None and out is None:
        raise typer.BadParameter("--to needs --out, the folder for converted.jsonl")
    if to is None:
        objective = objective or Objective.CHAT
    request = Request(
        objective=objective,
        format=data_format,
        columns=parse_columns(columns) if columns else None,
        system_message=system_message,
        to=to,
        model=model,
        max_length=max_length,
        skips_long=long_rows is LongRows.SKIP,
        max_rejected_percent=max_rejected_percent,
        show=show,
        chat_template=chat_template,
        chat_template_kwargs=parse_kwargs(chat_template_kwargs) if chat_template_kwargs else None,
        names_fields=job_fields,
    )
    check_local_rows(files, out, request)


@app.command("verify")
def verify_command(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="output.uri of a job: s3://bucket/prefix, or a local folder.")
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL of the S3 endpoint. Default: AWS_ENDPOINT_URL or that of the AWS profile, else AWS.",
            callback=_require_url,
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="s3://…=DIR", help="Local folder to use instead of a parent's URI; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Verify a published result: files against the manifest, the adapter against its configuration, the lineage
    against both and through its parents back to the base model. Exits with 1 and a sentence for each fault.
    """
    from finetune_trainer.commands.verify import verify_published

    raise typer.Exit(verify_published(uri, endpoint, maps or [], as_json=as_json))


@app.command("chat")
def chat_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --output folder of a run, a copy of a result, or an adapter.")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder, s3://… or hf://owner/name. Default: what the adapter names."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this one prompt, and exit.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message of the conversation. Default: dataset.systemMessage of the job.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of an answer, in tokens.", min=1)] = 256,
    temperature: Annotated[
        float, typer.Option(help="Temperature of sampling; 0 is greedy, as in the report.", min=0.0, max=10.0)
    ] = 0.0,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Number format. Auto: BF16 if the GPU supports it, else FP16; FP32 on a CPU.", case_sensitive=False
        ),
    ] = Precision.AUTO,
    send_keys_to: SendKeysTo = None,
) -> None:
    """Talk to the base and the tuned model side by side; works without a GPU.

    Without --prompt, each line of the terminal or of standard input is a turn of one conversation. The chat template
    and the stop tokens are the published ones. A base that is not on this machine is downloaded into
    ~/.cache/finetune-trainer, from the store or hub that its job names; keys go there as those of `run`. Pickle files
    and models with code of their own are refused.
    """
    from finetune_trainer.commands.chat import ChatOptions, chat

    state: RunState = context.obj
    options = ChatOptions(base, prompt, system, max_new_tokens, temperature, precision, send_keys_to or [])
    chat(folder, options, state.stop)


@app.command("merge")
def merge_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="The model that the adapter was trained on: a folder, s3://… or hf://…"),
    ],
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="An adapter as PEFT saves it, or the result of a job; also s3://… or hf://…"
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder for the merged model; new or empty.")],
    precision: Annotated[
        Precision, typer.Option(help="Number format of the model. Auto: the base's own.", case_sensitive=False)
    ] = Precision.AUTO,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Rows to compare on, in any format of check-data; the first 512. Default: the held-out rows of the "
            "adapter's own result, else its training rows, else built-in texts.",
            show_default=False,
        ),
    ] = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate/--no-validate",
            help="Read the model back and compare it with base and adapter; takes the memory of one model.",
        ),
    ] = True,
) -> None:
    """Merge an adapter into its base, and validate the model as a job does. Works without a GPU.

    A separate process reads the written files back: every tensor is what base and adapter produce, the
    log-probabilities are those of base and adapter, and tokenizer and chat template are unchanged. OUTPUT is written
    only if that holds.

    Exits with 64 if the adapter belongs to another base, 65 if no row can be compared, 66 if a model or adapter is
    damaged or a pickle, 69 if the disk is too small, 73 if OUTPUT is not empty, 78 if the model may not be used.
    """
    from finetune_trainer.commands.merge import MergeOptions, merge_adapter

    if rows is not None and not validate:
        raise typer.BadParameter(
            "--rows are compared by the validation, which --no-validate turns off: remove one of them"
        )
    state: RunState = context.obj
    merge_adapter(base, adapter, output, MergeOptions(precision, rows, validate), state.stop)


@app.command("estimate")
def estimate_command(  # noqa: PLR0917 - the options of a command
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a model, s3://bucket/prefix or hf://owner/name.")
    ],
    max_length: Annotated[int, typer.Option(help="Maximum sequence length in tokens.", min=16, max=1_048_576)] = 2048,
    gpus: Annotated[int, typer.Option(help="GPUs that train together.", min=1, max=16)] = 1,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of one GPU, for example 24Gi or 80G: shows what fits.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="One method; Auto shows all three.", case_sensitive=False)
    ] = Method.AUTO,
    objective: Annotated[Objective, typer.Option(help="What to train for.", case_sensitive=False)] = Objective.CHAT,
    teacher: Annotated[
        str | None, typer.Option(help="Model that objective Distillation learns from, named like MODEL.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Estimate the GPU memory of a training by part, for QLoRA, LoRA and Full. Needs no GPU and loads no weights.

    The settings are the defaults of a job. With --gpu-memory the batch is made smaller and activations are recomputed
    if that makes it fit. With --gpus above 1, QLoRA and LoRA are also shown with tuning.lora.shardBase. Exits with 71
    if no method fits.
    """
    from finetune_trainer.commands.estimate import Request, parse_memory, print_estimate

    state: RunState = context.obj
    memory = parse_memory(gpu_memory) if gpu_memory else None
    request = Request(max_length, gpus, memory, method, objective, teacher)
    raise typer.Exit(print_estimate(model, request, state.stop, as_json=as_json))
