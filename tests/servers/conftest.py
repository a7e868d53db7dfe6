"""Published results of real trainings in a real S3 server, and the commands of their reports."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from answering_jobs import HYPERPARAMETERS
from hub import Hub
from preloaded import preloaded_python
from s3_servers import S3Server
from s3_world import s3_server
from tiny_model import CHAT_TEMPLATE, CORPUS, SPECIAL_TOKENS, make_tiny_model
from tokenizer_families import byte_fallback
from tokenizers import AddedToken
from trainer_pod import checked, make_config
from vllm_server import PROGRAMS, shell

__all__ = ["s3_server"]

QUESTIONS = {"What is the colour of the sky?": "The sky is blue.", "How many legs has a spider?": "It has eight legs."}
ROWS = [
    {"instruction": question + end, "output": answer}
    for end in ("", *(f" Sentence {number}." for number in range(15)))
    for question, answer in QUESTIONS.items()
]
BUCKET = "servers"
HEADS = 2
"""vLLM serves no narrower heads on a CPU."""


@dataclass(frozen=True)
class Result:
    """A published result, and an empty folder in which a reader of its report works."""

    report: str
    folder: Path
    environment: dict[str, str]

    def run(self, commands: str) -> None:
        """Run commands that the report prints to copy a folder."""
        shell(commands, self.folder, **self.environment)


MakeResult = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    assert (PROGRAMS / "vllm").exists(), "vLLM is not installed: make servers"


@pytest.fixture(scope="session")
def trainer_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for `sys.executable` whose training libraries are loaded already."""
    with preloaded_python(tmp_path_factory.mktemp("preloaded")) as program:
        yield program


@pytest.fixture(scope="session")
def make_result(s3_server: S3Server, trainer_python: str, tmp_path_factory: pytest.TempPathFactory) -> MakeResult:
    """Train a model of that folder as a job does, with its storage in a bucket, and publish the result there."""
    keys = {"AWS_ACCESS_KEY_ID": s3_server.access_key, "AWS_SECRET_ACCESS_KEY": s3_server.secret_key}
    s3 = s3_server.client()
    s3.create_bucket(Bucket=BUCKET)

    def make(name: str, model: Path | str, **blocks: Any) -> Result:
        prefix, workspace = f"s3://{BUCKET}/{name}", tmp_path_factory.mktemp(name)
        if isinstance(model, Path):
            for path in model.iterdir():
                s3.upload_file(str(path), BUCKET, f"{name}/model/{path.name}")
        uri = f"{prefix}/model" if isinstance(model, Path) else model
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        s3.put_object(Bucket=BUCKET, Key=f"{name}/rows.jsonl", Body=lines.encode())
        defaults: dict[str, Any] = {
            "objective": "Instruction",
            "model": {"uri": uri},
            "tuning": {"method": "LoRA"},
            "dataset": {"train": {"uri": f"{prefix}/rows.jsonl"}},
            "hyperparameters": HYPERPARAMETERS,
            "evaluation": {"prompts": [{"prompt": row["instruction"]} for row in ROWS[:2]], "maxNewTokens": 32},
            "output": {"uri": f"{prefix}/out"},
        }
        config = make_config(s3_server, BUCKET, **defaults | blocks).model_copy(update={"name": name})
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in keys.items():
                patch.setenv(variable, value)
            pod = checked(config, workspace, trainer_python)
            assert pod.start("train").wait(800) == 0, (workspace / "stderr").read_text()
        report = s3.get_object(Bucket=BUCKET, Key=f"{name}/out/finetune_report.md")["Body"].read().decode()
        (workspace / "reader").mkdir()
        return Result(report, workspace / "reader", keys | {"AWS_DEFAULT_REGION": "us-east-1"})

    return make


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a base model whose texts do not end as the answers of its chat template do."""
    root = tmp_path_factory.mktemp("hub")
    folder = make_tiny_model(root / "models" / "acme" / "base", heads=HEADS)
    for name, end in (("config.json", 0), ("generation_config.json", 0), ("tokenizer_config.json", "<|endoftext|>")):
        settings = json.loads((folder / name).read_text())
        settings["eos_token" if isinstance(end, str) else "eos_token_id"] = end
        (folder / name).write_text(json.dumps(settings))
    with Hub(root).serving() as served:
        yield served


@pytest.fixture(scope="session")
def result(make_result: MakeResult, hub: Hub) -> Result:
    """An adapter of the default rank and its full model. The base is from a hub, and does not end its texts as its
    chat template ends answers."""
    output = {"uri": f"s3://{BUCKET}/plain/out", "merge": "BF16"}
    return make_result("plain", "hf://acme/base", hub={"endpoint": hub.endpoint}, output=output)


@pytest.fixture(scope="session")
def wide(make_result: MakeResult, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An adapter of rank 24; its base has no chat template."""
    model = make_tiny_model(tmp_path_factory.mktemp("base") / "model", heads=HEADS)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return make_result("wide", model, tuning={"method": "LoRA", "lora": {"rank": 24}})


@pytest.fixture(scope="session")
def spaced(make_result: MakeResult, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """An adapter whose base has a tokenizer as the first Llamas, which transformers, and with it a server, reads by
    rules of its own: without the space that `tokenizer.json` puts before each part."""
    model = make_tiny_model(tmp_path_factory.mktemp("spaced") / "model", heads=HEADS)
    tokenizer = byte_fallback(CORPUS)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(model / "tokenizer.json"))
    begin, _, end = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    named = {"tokenizer_class": "LlamaTokenizer", "chat_template": CHAT_TEMPLATE, "add_bos_token": False}
    ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    texts = {"bos_token": SPECIAL_TOKENS[0], "eos_token": SPECIAL_TOKENS[2], "pad_token": SPECIAL_TOKENS[2]}
    files = {"config.json": ids, "generation_config.json": ids, "tokenizer_config.json": named | texts}
    for name, changes in files.items():
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | changes))
    return make_result("spaced", model)
