"""What `new` asks at a terminal, and where it puts the manifest."""

import sys
from collections.abc import Mapping
from pathlib import Path

import typer

from finetune_api.objectives import Objective
from kubectl_finetune.errors import PluginError, WrongUse
from kubectl_finetune.spelling import nearest

QUESTIONS: Mapping[str, tuple[str, str | None]] = {
    "objective": (f"What for ({', '.join(one.value for one in Objective)})", Objective.CHAT.value),
    "model": ("Base model (hf://owner/name or s3://bucket/path)", None),
    "data": ("Rows to train on (s3://bucket/path or hf://datasets/owner/name)", None),
    "result": ("Where the result goes (s3://bucket/path)", None),
}


def ask(given: Mapping[str, str | None]) -> dict[str, str]:
    """The answers, asked at a terminal where an option is missing; elsewhere an option without a default is needed."""
    missing = [name for name, value in given.items() if value is None]
    needed = [f"--{name}" for name in missing if QUESTIONS[name][1] is None]
    if not sys.stdin.isatty() and needed:
        raise WrongUse(f"missing {', '.join(needed)}", "give them, or run this at a terminal, which asks")
    return {name: value if value is not None else _answer(name) for name, value in given.items()}


def _answer(name: str) -> str:
    question, default = QUESTIONS[name]
    if not sys.stdin.isatty():
        return str(default)
    answer = str(typer.prompt(question, default=default, err=True))
    return (nearest(answer, [one.value for one in Objective]) or answer) if name == "objective" else answer


def deliver(text: str, path: Path, *, force: bool) -> None:
    """Prints the manifest, or writes it to a file that is not there yet."""
    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise PluginError(f"{path} is there already", "--force overwrites it, -f names another file") from None
    except OSError as error:
        raise PluginError(f"{path} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {path}", err=True)
    typer.echo(f"check it: kubectl finetune validate {path}", err=True)
