"""Which maps of a local run are accepted, and which paths its messages name."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.commands.local_jobs import to_published_job
from finetune_trainer.commands.local_maps import LocalNames, read_maps
from finetune_trainer.errors import StorageUnavailable, TrainerError

COMMIT = "0123456789" * 4


def make_job(**blocks: Any) -> JobConfig:
    spec = {
        "objective": "Chat",
        "model": {"uri": "hf://owner/model"},
        "dataset": {"train": {"uri": "s3://data/support/*.jsonl"}, "validation": {"uri": "s3://data/held-out.jsonl"}},
        "output": {"uri": "s3://models/bot/"},
    }
    parsed = FineTuneJobSpec.model_validate(spec | blocks)
    return JobConfig(namespace="default", name="bot", uid="u", config_sha256="0" * 64, spec=parsed)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.csv").write_text("prompt,completion\n")
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "option",
    [
        "hf://owner/model=data",
        "s3://data=data",
        "s3://data/support/=data",
        "s3://data/held-out.jsonl=rows.csv",
        "s3://models/bot=new",
        "s3://models=new",
        "s3://models/bot/checkpoints=new",
        "s3://models/parent=data",
    ],
)
def test_a_map_of_what_the_manifest_names_is_used(option: str) -> None:
    uri, _, path = option.partition("=")
    parent = make_job(output={"uri": "s3://models/parent"})
    assert read_maps([option], [make_job()], [to_published_job(parent, "0" * 64)]) == {uri: Path(path)}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "uri",
    [
        "s3://date/support",
        "s3://data/supp",
        "hf://owner/other",
        "s3://data/support/a.jsonl",
        "s3://data/support/*.jsonl",
    ],
)
def test_a_map_that_nothing_uses_is_refused_with_the_uris_of_the_manifest(uri: str) -> None:
    with pytest.raises(TrainerError) as refused:
        read_maps([f"{uri}=data"], [make_job()])
    assert refused.value.code is ExitCode.INVALID_CONFIG
    assert refused.value.message == (
        f"--map {uri}=data: the manifest has no such URI: write one of hf://owner/model, s3://data/support, "
        "s3://data/held-out.jsonl, s3://models/bot/"
    )


@pytest.mark.usefixtures("here")
def test_the_base_of_a_reward_models_adapter_is_not_in_the_manifest() -> None:
    job = make_job(objective="RLHF", rlhf={"rewardModel": {"uri": "s3://models/judge"}})
    assert read_maps(["hf://owner/base=data"], [job]) == {"hf://owner/base": Path("data")}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("option", ["s3://data/held-out.jsonl=nothere", "s3://data=nothere", "hf://owner/model=x"])
def test_only_a_folder_for_results_may_be_new(option: str) -> None:
    with pytest.raises(TrainerError, match=f"--map {option}: there is no such file or folder"):
        read_maps([option], [make_job()])


@pytest.mark.usefixtures("here")
def test_a_new_folder_with_outputs_and_inputs_is_refused_only_for_inputs_of_other_jobs() -> None:
    child = make_job(model={"uri": "s3://models/bot/merged"}, output={"uri": "s3://models/child"})
    assert read_maps(["s3://models=new"], [make_job(), child]) == {"s3://models": Path("new")}
    with pytest.raises(TrainerError, match="no such file or folder"):
        read_maps(["s3://models=new"], [child])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "s3://models/bot belongs to an earlier FineTuneJob default/bot: choose another output.uri, or remove the "
            "existing objects",
            "out belongs to an earlier FineTuneJob default/bot: choose another --output, or remove the "
            "existing objects",
        ),
        ("Remove s3://models/bot/checkpoints, or", "Remove out/checkpoints, or"),
        ("Every rejected row: s3://models/bot/refused/u/rows.jsonl", "Every rejected row: out/refused/u/rows.jsonl"),
        ("s3://models/bot-two and s3://models/bot.two are others", None),
        (
            "s3://data/rows/rows.csv: line 2. s3://data/rows/ and s3://data/rows.",
            "rows.csv: line 2. rows.csv and rows.csv.",
        ),
        (f"hf://owner/model@{COMMIT}/config.json is missing", "data/config.json is missing"),
        ("'s3://models/bot' (s3://models/bot)", "'out' (out)"),
    ],
)
def test_messages_name_local_paths(text: str, shown: str | None) -> None:
    folders = {"s3://models/bot": "out", "s3://data/rows/": "rows.csv", "hf://owner/model": "data"}
    names = LocalNames({uri: Path(path) for uri, path in folders.items()}, ["s3://data/rows/"])
    assert names.replace_uris(text, "s3://models/bot") == (shown or text)


def test_an_output_with_a_map_has_no_other_option() -> None:
    names = LocalNames({"s3://models": Path("out")}, ["s3://models"])
    assert names.replace_uris("choose another output.uri", "s3://models/bot") == "choose another output.uri"


def test_a_failure_stays_of_its_kind() -> None:
    with (
        pytest.raises(StorageUnavailable) as failed,
        LocalNames({"s3://models/bot": Path("out")}).in_errors("s3://models/bot"),
    ):
        raise StorageUnavailable("s3://models/bot is full")
    assert failed.value.message == "out is full"
