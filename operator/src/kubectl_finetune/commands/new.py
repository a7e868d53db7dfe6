"""`new`: a starter manifest with comments for first-time users."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import typer

from finetune_api import names
from finetune_api.manifest.yaml_document import read_scalar
from finetune_api.objectives import Dpo, Kto, Objective, Rlhf
from finetune_api.recipes import LARGE, MANY_ROWS, RECIPES, number_text
from finetune_api.spec import FORMATS
from finetune_api.text.printable import printable
from finetune_api.tuning import Method
from finetune_client.errors import FineTuneError, WrongUse, explain_unwritten
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.commands.validate import check_files

ROWS: Mapping[Objective, str] = {
    Objective.INSTRUCTION: '{"instruction": "Name a red fruit.", "input": "", "output": "The apple."}',
    Objective.CHAT: '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
    Objective.DPO: '{"prompt": "Name a red fruit.", "chosen": "The apple.", "rejected": "The banana."}',
    Objective.KTO: '{"prompt": "Name a red fruit.", "completion": "The apple.", "label": true}',
    Objective.REWARD_MODEL: '{"prompt": "Name a red fruit.", "chosen": "The apple.", "rejected": "The banana."}',
    Objective.RLHF: '{"prompt": "Name a red fruit."}',
    Objective.DISTILLATION: '{"prompt": "Name a red fruit."}',
    Objective.DOMAIN_ADAPTATION: '{"text": "A page of plain text about the domain."}',
}
BLOCKS: Mapping[Objective, str] = {
    Objective.DPO: f"""  dpo:
    beta: {number_text(Dpo().beta):<22}# penalty for deviating from the base model
""",
    Objective.KTO: f"""  kto:
    beta: {number_text(Kto().beta):<22}# penalty for deviating from the base model
""",
    Objective.RLHF: f"""  rlhf:
    rewards:                    # or rewardModel: {{jobRef: {{name: …}}}}, a finished job with objective RewardModel
    - {{type: Length, targetTokens: 64}}
    numGenerations: {Rlhf().num_generations:<12}# answers sampled for each prompt
""",
    Objective.DISTILLATION: """  distillation:
    teacher:
      uri: hf://owner/larger    # a larger model with the same tokenizer and vocab_size
""",
}
NO_ENDPOINT = "# endpoint: http://minio.minio:9000  # default: that of the operator, else AWS S3"
Word = TypeVar("Word", Objective, Method)


@dataclass(frozen=True)
class Answers:
    """The values of a starter manifest."""

    name: str
    model: str
    data: str
    result: str
    objective: str = "Chat"
    namespace: str = ""
    method: str = "Auto"
    secret: str = "s3-credentials"  # noqa: S105 - the name of a Secret
    endpoint: str = ""
    gpus: int = 1
    validation_percent: int = 10
    queue: str = ""
    file: str = ""
    """Where it will be; NAME.yaml if that is not known."""


def write(answers: Answers) -> str:
    """Return a valid manifest; raise WrongUse with the first problem if the answers are invalid."""
    objective = _word(answers.objective, Objective, "--objective")
    method = _word(answers.method, Method, "--method")
    text = _template(answers, objective, method)
    if problems := check_files([(f"{answers.name}.yaml", text)]).problems:
        first = problems[0]
        raise WrongUse(f"{first.field} {first.message}: {first.value}", first.fix)
    return text


def _word(text: str, kind: type[Word], flag: str) -> Word:
    known = [one.value for one in kind]
    near = nearest(text, known)
    if near and near.lower() == text.lower():
        return kind(near)
    raise WrongUse(f"{flag} {text}: must be one of {', '.join(known)}", f"did you mean {near}?" if near else "")


def _template(answers: Answers, objective: Objective, method: Method) -> str:
    namespace = f"\n  namespace: {_quote(answers.namespace)}" if answers.namespace else ""
    endpoint = f"endpoint: {_quote(answers.endpoint)}" if answers.endpoint else NO_ENDPOINT
    holds_out = answers.validation_percent > 0
    split = (
        f"\n    validationSplitPercent: {answers.validation_percent}  # held out for evaluation" if holds_out else ""
    )
    can_stop = holds_out and objective is not Objective.RLHF
    stop = (
        "  earlyStopping: {patience: 3}  # evaluations without improvement; the best weights are kept\n"
        if can_stop
        else ""
    )
    queue = (
        f"  scheduling:\n    queueName: {_quote(answers.queue)}  # Kueue LocalQueue in this namespace\n"
        if answers.queue
        else ""
    )
    formats = ", ".join(FORMATS[objective.value][1:])
    file = printable(shlex.quote(answers.file or f"{answers.name}.yaml"))
    there = f" -n {answers.namespace}" if answers.namespace else ""
    return f"""\
# A {objective.value} job. Check it:   kubectl finetune validate {file}
#{" " * (len(objective.value) + 8)}Start it:   kubectl apply -f {file}
#{" " * (len(objective.value) + 8)}Follow it:  kubectl finetune progress {answers.name}{there}
# Every field: kubectl explain finetunejob.spec --recursive
apiVersion: {names.API_VERSION}
kind: {names.KIND}
metadata:
  name: {_quote(answers.name)}{namespace}
spec:
  objective: {objective.value}
  storage:                      # for every s3:// below
    {endpoint}
    # a Secret of this namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    credentialsSecretRef: {{name: {_quote(answers.secret)}}}
  model:
    uri: {_quote(answers.model)}
  tuning:
    method: {method.value:<20}# QLoRA, LoRA or Full; Auto is QLoRA unless Full fits vramBudget
  dataset:                      # formats: {formats}; detected row by row
    # one row: {ROWS[objective]}
    # several sources: train: {{sources: [{{uri: s3://…, weight: 3}}, {{uri: s3://…, weight: 1}}]}}
    train: {{uri: {_quote(answers.data)}}}{split}
{BLOCKS.get(objective, "")}  hyperparameters:
    maxLength: 2048             # tokens; longer rows are truncated and counted
{_defaults(objective, method)}{stop}  output:
    uri: {_quote(answers.result)}  # only for this job
  resources:
    gpusPerNode: {answers.gpus}
    # requests: {{cpu: "4", memory: 24Gi}}
{queue}"""


def _defaults(objective: Objective, method: Method) -> str:
    """Return the settings that users change first, as comments with their defaults."""
    used = Method.QLORA if method is Method.AUTO else method
    recipe = RECIPES[objective]
    epochs, rate = (number_text(one) for one in (recipe.num_epochs(used, 0), recipe.learning_rate(used, 0)))
    fewer = "" if used is Method.FULL or recipe.epochs == 1 else f"; 1 above {MANY_ROWS:,} rows"
    half = f"; half of it above {LARGE[used]} billion weights" if used in LARGE else ""
    return (
        f"    # numTrainEpochs: {epochs:<10}# the default of this objective and method{fewer}\n"
        f"    # learningRate: {rate:<12}# the default of this objective and method{half}\n"
    )


def _quote(text: str) -> str:
    """Return a text as YAML, quoted if it would be read as another value."""
    plain = text.replace("-", "").replace("/", "").replace(".", "").replace(":", "")
    is_plain = plain.isalnum() and not text.startswith(("-", ".", ":")) and not text.endswith(":") and ": " not in text
    return text if is_plain and isinstance(read_scalar(text), str) else json.dumps(text, ensure_ascii=False)


PROMPTS: Mapping[str, tuple[str, str | None]] = {
    "objective": (f"Objective ({', '.join(one.value for one in Objective)})", Objective.CHAT.value),
    "model": ("Base model (hf://owner/name or s3://bucket/path)", None),
    "data": ("Rows to train on (s3://bucket/path or hf://datasets/owner/name)", None),
    "result": ("Prefix of the result (s3://bucket/path)", None),
}


def ask(given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the answers; prompt for missing options at a terminal, else require those without a default."""
    missing = [name for name, value in given.items() if value is None]
    needed = [f"--{name}" for name in missing if PROMPTS[name][1] is None]
    if not sys.stdin.isatty() and needed:
        raise WrongUse(f"missing {', '.join(needed)}", "give them, or run this at a terminal, which prompts for them")
    return {name: value if value is not None else _answer(name) for name, value in given.items()}


def _answer(name: str) -> str:
    question, default = PROMPTS[name]
    if not sys.stdin.isatty():
        return str(default)
    answer = str(typer.prompt(question, default=default, err=True))
    return (nearest(answer, [one.value for one in Objective]) or answer) if name == "objective" else answer


def deliver(text: str, path: Path, *, force: bool) -> None:
    """Print the manifest, or write it to a new file."""
    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise FineTuneError(f"{path} exists", "--force overwrites it, -f names another file") from None
    except OSError as error:
        raise explain_unwritten(path, error) from None
    typer.echo(f"wrote {path}", err=True)
    typer.echo(f"check it: kubectl finetune validate {path}", err=True)
