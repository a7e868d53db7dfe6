"""`finetune-trainer chat`: a conversation with the base and the tuned model, on this machine."""

# ruff: noqa: PLC0415 - torch and transformers are imported once the folder is known to be good

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_api.handoff import Artifact
from finetune_api.spec import FineTuneJobSpec, Precision
from finetune_api.status import Resolved
from finetune_api.text.printable import printable
from finetune_trainer.commands.chat_screen import show_answers
from finetune_trainer.commands.model_place import ModelPlace, Origin, open_base
from finetune_trainer.config.manifest import read_manifest
from finetune_trainer.data.rows import Message
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.merging.tuned_folder import TunedFolder, read_tuned
from finetune_trainer.models.files.base_model import TOKENIZER
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.tokenization.labeler import Labeler, load_labeler

if TYPE_CHECKING:
    from finetune_trainer.merging.tuned_model import Answerer

logger = logging.getLogger(__name__)

HELP = "/new starts a new conversation, /exit ends. Ctrl-C ends an answer."


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of the command; without a temperature answers are greedy, as in the report."""

    base: str | None = None
    prompt: str | None = None
    system: str | None = None
    """Default: the system message of the job's rows; an empty one is none."""
    max_new_tokens: int = 256
    temperature: float = 0.0
    precision: Precision = Precision.AUTO
    send_keys_to: Collection[str] = ()


def chat(folder: Path, options: ChatOptions, stop: StopFlag) -> None:
    """Load base and tuned model, and answer one prompt, or every line of standard input."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing has to be saved, and a prompt waits without a check
    tuned, spec = read_tuned(folder), read_spec(folder)
    if options.system is None and spec:
        options = replace(options, system=spec.dataset.system_message)
    with tempfile.TemporaryDirectory(prefix="finetune-chat-") as scratch:
        base = None
        if options.base:
            origin = Origin(spec, send_keys_to=options.send_keys_to)
            base = open_base(options.base, "--base", stop, Path(scratch), origin).folder
        elif name := name_base(folder, tuned, spec):
            base = find_named_base(name, tuned, Origin(spec, tuned.revision, options.send_keys_to), stop, Path(scratch))
        if not tuned.is_adapter:
            name = str(tuned.weights)
            ModelPlace(name, LocalStore({name: tuned.weights})).check(Path(scratch) / "tuned", "DIR")
        has_tokenizer = (tuned.weights / TOKENIZER).is_file()
        source = tuned.weights if has_tokenizer or base is None else base
        labeler = load_labeler(source, str(source))
        conversation = Conversation(_load(tuned, base, options.precision), labeler, options)
        if options.prompt is not None:
            conversation.ask(options.prompt)
        else:
            converse(conversation, is_interactive=sys.stdin.isatty())


class Conversation:
    """What was asked so far, with each model's own answers."""

    def __init__(self, answerers: Sequence["Answerer"], labeler: Labeler, options: ChatOptions) -> None:
        self._answerers, self._labeler, self._options = answerers, labeler, options
        self._console = Console()
        self.start()

    def start(self) -> None:
        """Start a new conversation."""
        system = [Message(role="system", content=self._options.system)] if self._options.system else []
        self._turns: dict[str, list[Message]] = {one.name: list(system) for one in self._answerers}

    def ask(self, question: str) -> None:
        """Show every model's answer; the question counts only once all have answered."""
        from finetune_trainer.evaluation.stream import stream_answer

        turn = Message(role="user", content=question)
        answers: dict[str, str] = {}
        with show_answers(self._console, list(self._turns)) as show:
            for one in self._answerers:
                with one.in_use():
                    answers[one.name] = stream_answer(
                        one.model,
                        self._labeler,
                        [*self._turns[one.name], turn],
                        max_new_tokens=self._options.max_new_tokens,
                        temperature=self._options.temperature,
                        on_text=partial(show, one.name),
                    )
                show(one.name, answers[one.name])
        for name, answer in answers.items():
            self._turns[name] += [turn, Message(role="assistant", content=answer)]


def converse(conversation: Conversation, *, is_interactive: bool) -> None:
    """Answer each line until the input ends; on a terminal an error or Ctrl-C ends only the answer."""
    if is_interactive:
        sys.stderr.write(f"{HELP}\n")
    for line in _read_lines("> " if is_interactive else ""):
        if line == "/exit":
            return
        if line == "/new":
            conversation.start()
            continue
        try:
            conversation.ask(line)
        except (KeyboardInterrupt, TrainerError) as error:
            if not is_interactive:
                raise
            if isinstance(error, TrainerError):
                sys.stderr.write(f"{printable(error.message)}\n")


def _read_lines(prompt: str) -> Iterator[str]:
    if prompt:
        import readline  # noqa: F401 - arrow keys and the history of lines
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def read_spec(folder: Path) -> FineTuneJobSpec | None:
    """Return the spec of the job whose result the folder has; None if it has only weights."""
    config = folder / Artifact.CONFIG
    return read_manifest(config, "local").spec if config.is_file() else None


def name_base(folder: Path, tuned: TunedFolder, spec: FineTuneJobSpec | None) -> str | None:
    """Return the base that the adapter names; a full model is compared with that of its job, if the folder has it."""
    if tuned.is_adapter and tuned.base is None:
        raise InvalidConfig(f"{folder} names no base with a URI: name its folder with --base")
    return tuned.base or (spec.model.uri if spec else None)


def find_named_base(name: str, tuned: TunedFolder, origin: Origin, stop: StopFlag, scratch: Path) -> Path | None:
    """Return the folder of a base without `--base`; a full model needs none."""
    try:
        return open_base(name, "--base", stop, scratch, origin).folder
    except TrainerError as error:
        if tuned.is_adapter:
            raise TrainerError(error.code, f"{error.message}; or name the folder of the base with --base") from error
        logger.warning("only the tuned model is shown: %s", error.message)
        return None


def _load(tuned: TunedFolder, base: Path | None, precision: Precision) -> list["Answerer"]:
    # As in the training: PyTorch reads it when it is imported.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

    from finetune_trainer.merging.tuned_model import load_answerers
    from finetune_trainer.models.device import complete_settings, find_device
    from finetune_trainer.models.loading import DTYPES

    device = find_device()
    chosen = complete_settings(Resolved(precision=precision.value), device).precision
    return load_answerers(tuned, base, DTYPES[str(chosen)], device)
