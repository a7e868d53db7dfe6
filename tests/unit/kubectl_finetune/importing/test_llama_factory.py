"""A LLaMA-Factory file becomes a job; its rows are described by dataset_info.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubectl_finetune.commands.import_file import Imported, import_file
from kubectl_finetune.importing.draft import Options

BASE = {
    "model_name_or_path": "acme/base-1b",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "chats",
    "output_dir": "saves/out",
}
INFO: dict[str, Any] = {
    "chats": {
        "hf_hub_url": "acme/chats",
        "formatting": "sharegpt",
        "columns": {"messages": "dialog"},
        "tags": {"role_tag": "kind", "content_tag": "phrase", "user_tag": "human", "assistant_tag": "gpt"},
    },
    "local": {"file_name": "rows.json", "columns": {"prompt": "ask", "response": "reply"}},
    "pairs": {"hf_hub_url": "acme/pairs", "ranking": True, "columns": {"prompt": "ask", "chosen": "good"}},
    "pages": {"cloud_file_name": "s3://data/pages.jsonl", "columns": {"prompt": "body"}},
    "pictures": {"hf_hub_url": "acme/pictures", "columns": {"messages": "messages", "images": "images"}},
    "strange": {"hf_hub_url": "acme/strange", "formatting": "sharegpt", "tags": {"assistant_tag": "agent"}},
    "coded": {"script_url": "acme/coded"},
}
Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Import BASE with other values, next to INFO."""

    def call(options: Options | None = None, **changes: Any) -> Imported:
        (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
        path = tmp_path / "sft.yaml"
        path.write_text(yaml.safe_dump({key: one for key, one in (BASE | changes).items() if one is not None}))
        return import_file(path, "", options or Options(result="s3://models/out"))

    return call


def spec_of(done: Imported) -> dict[str, Any]:
    assert done.manifest is not None, done.refused
    return dict(done.manifest["spec"])


def test_the_defaults_of_llama_factory_are_written_where_ours_differ(read: Read) -> None:
    done = read()
    assert (done.problems, done.fill_in, done.not_carried) == ([], [], [])
    assert spec_of(done) == {
        "objective": "Chat",
        "model": {"uri": "hf://acme/base-1b"},
        "tuning": {"method": "LoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}},
        "dataset": {
            "train": {"uri": "hf://datasets/acme/chats"},
            "columns": {"messages": "dialog", "role": "kind", "content": "phrase"},
        },
        "hyperparameters": {
            "perDeviceTrainBatchSize": 8,
            "gradientAccumulationSteps": 1,
            "warmupSteps": 0,
            "numTrainEpochs": 3,
            "packing": "Never",
            "maxLength": 2048,
            "learningRate": 5e-05,
            "lrSchedulerType": "linear",
            "optim": "adamw_torch_fused",
            "maxGradNorm": 1.0,
        },
        "output": {"uri": "s3://models/out"},
        "resources": {"gpusPerNode": 1},
    }


@pytest.mark.parametrize(
    ("changes", "objective"),
    [
        ({}, "Chat"),
        ({"mask_history": True}, "Instruction"),
        ({"stage": "pt", "dataset": "pages"}, "DomainAdaptation"),
        ({"stage": "rm", "dataset": "pairs"}, "RewardModel"),
        ({"stage": "dpo", "dataset": "pairs"}, "DPO"),
        ({"stage": "kto"}, "KTO"),
    ],
)
def test_the_stage_is_the_objective(read: Read, changes: dict[str, Any], objective: str) -> None:
    done = read(**changes)
    assert (spec_of(done)["objective"], done.problems) == (objective, [])


def test_the_template_and_the_loss_of_every_token_are_carried(read: Read) -> None:
    done = read(template="alpaca", train_on_prompt=True)
    assert spec_of(done)["model"]["chatTemplate"] == {"name": "Alpaca"}
    assert spec_of(done)["dataset"]["trainOn"] == "Everything"
    assert [one.reason for one in done.not_carried if one.key == "template"] == [
        "no system text is added to rows without one"
    ]
    assert "chatTemplate" not in spec_of(read(template="llama3"))["model"]


def test_preferences_carry_beta_and_loss(read: Read) -> None:
    spec = spec_of(read(stage="dpo", dataset="pairs", pref_beta=0.3, pref_loss="ipo"))
    assert spec["dpo"] == {"beta": 0.3, "lossType": "ipo"}
    assert spec["dataset"]["columns"] == {"instruction": "ask", "chosen": "good"}
    assert spec_of(read(stage="kto", kto_rejected_weight=2))["kto"] == {"beta": 0.1, "undesirableWeight": 2}


@pytest.mark.parametrize(
    ("changes", "tuning"),
    [
        ({"quantization_bit": 4, "double_quantization": False},
         {"method": "QLoRA", "quantization": {"doubleQuant": False}}),
        ({"lora_rank": 64}, {"method": "LoRA", "lora": {"rank": 64, "alpha": 128, "dropout": 0.0}}),
        ({"lora_target": "q_proj,v_proj"}, {"lora": {"rank": 8, "alpha": 16, "dropout": 0.0,
                                                     "targetModules": ["q_proj", "v_proj"]}}),
        ({"finetuning_type": "full"}, {"method": "Full"}),
        ({"adapter_name_or_path": "acme/adapter"}, {"initialAdapter": {"uri": "hf://acme/adapter"}}),
    ],
)  # fmt: skip
def test_adapter_and_quantisation_are_carried(read: Read, changes: dict[str, Any], tuning: dict[str, Any]) -> None:
    found = spec_of(read(**changes))["tuning"]
    assert {name: found[name] for name in tuning} == tuning


def test_plain_text_has_its_column_and_is_packed(read: Read) -> None:
    spec = spec_of(read(stage="pt", dataset="pages"))
    assert spec["dataset"] == {
        "train": {"uri": "s3://data/pages.jsonl"},
        "format": "Text",
        "columns": {"text": "body"},
    }
    assert spec["hyperparameters"]["packing"] == "Always"


def test_a_local_file_of_the_descriptions_is_a_placeholder_with_its_columns(read: Read) -> None:
    done = read(dataset="local")
    assert spec_of(done)["dataset"] == {
        "train": {"uri": "fill-in:rows.json"},
        "format": "Alpaca",
        "columns": {"instruction": "ask", "output": "reply"},
    }
    assert [(one.field, one.value) for one in done.fill_in] == [("spec.dataset.train.uri", "rows.json")]


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"dataset": "pictures"}, "dataset", "pictures: images, audio and video cannot be trained on"),
        ({"dataset": "coded"}, "dataset", "coded is loaded by a script, which is not run"),
        ({"stage": "ppo"}, "stage", "there is no PPO"),
        ({"stage": "dpo", "dataset": "pairs", "pref_loss": "orpo"}, "pref_loss", "there is no orpo loss"),
        ({"finetuning_type": "oft"}, "finetuning_type", "weights are trained by LoRA, QLoRA or in full"),
        ({"do_train": None, "dataset": None, "export_dir": "out"}, "do_train (default)",
         "the file trains nothing: it merges, answers or evaluates"),
    ],
)  # fmt: skip
def test_what_no_job_can_express_is_refused(read: Read, changes: dict[str, Any], key: str, reason: str) -> None:
    done = read(**changes)
    assert [(one.key, one.reason) for one in done.refused] == [(key, reason)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset": "strange"}, "a turn with the role agent is rejected"),
        ({"dataset": "missing"}, "dataset_info.json has no missing"),
        ({"packing": True}, "packed rows do not attend to each other, as with neat_packing"),
        ({"quantization_bit": 8}, "the base is in 16 bits, which needs more memory"),
        ({"learning_rat": 1}, "this key is not known"),
    ],
)
def test_what_is_not_carried_is_named(read: Read, changes: dict[str, Any], reason: str) -> None:
    assert reason in [one.reason for one in read(**changes).not_carried if one.changes_training]


def test_a_file_without_the_descriptions_names_where_they_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(BASE))
    done = import_file(path, "", Options())
    assert [(one.key, one.reason) for one in done.not_carried] == [
        ("dataset", "chats is described in dataset_info.json, which is not next to the file")
    ]
    assert spec_of(done)["dataset"]["train"]["uri"] == "fill-in:chats"


def test_several_datasets_are_sources_and_each_has_the_limit(read: Read) -> None:
    done = read(dataset="chats,local", max_samples=100)
    assert spec_of(done)["dataset"] == {
        "train": {
            "sources": [
                {
                    "uri": "hf://datasets/acme/chats",
                    "maxSamples": 100,
                    "columns": {"messages": "dialog", "role": "kind", "content": "phrase"},
                },
                {
                    "uri": "fill-in:rows.json",
                    "maxSamples": 100,
                    "format": "Alpaca",
                    "columns": {"instruction": "ask", "output": "reply"},
                },
            ]
        }
    }
    assert done.problems == []


@pytest.mark.parametrize("path", ["saves/sft", "output/run-1", "Checkpoints/base", "./acme/base"])
def test_a_model_in_a_folder_of_this_machine_is_left_to_fill_in(read: Read, path: str) -> None:
    done = read(model_name_or_path=path, adapter_name_or_path="saves/sft")
    assert spec_of(done)["model"]["uri"] == f"fill-in:{path}"
    assert spec_of(done)["tuning"]["initialAdapter"] == {"uri": "fill-in:saves/sft"}
    assert {one.field for one in done.fill_in} >= {"spec.model.uri", "spec.tuning.initialAdapter.uri"}
    assert spec_of(read(model_name_or_path="datalab-to/base"))["model"]["uri"] == "hf://datalab-to/base"


@pytest.mark.parametrize(
    ("name", "advice"), [("chast", "did you mean chats? Else copy"), ("unlike", "copy its entry there")]
)
def test_a_dataset_that_is_not_described_gets_the_name_that_was_meant(read: Read, name: str, advice: str) -> None:
    (lost,) = [one for one in read(dataset=name).not_carried if one.key == "dataset"]
    assert lost.reason == f"dataset_info.json has no {name}"
    assert lost.fix.startswith(advice)


def reasons(done: Imported, key: str) -> list[str]:
    return [one.reason for one in done.not_carried if one.key == key]


def test_held_out_rows_with_other_columns_or_a_limit_are_named(read: Read) -> None:
    done = read(eval_dataset="local", max_samples=100)
    assert spec_of(done)["dataset"]["validation"] == {"uri": "fill-in:rows.json"}
    assert reasons(done, "eval_dataset") == [
        "held-out rows have no format of their own: Auto, not Alpaca",
        "held-out rows have no columns of their own: {messages: dialog, role: kind, content: phrase}, "
        "not {instruction: ask, output: reply}",
        "all held-out rows are evaluated, not 100",
    ]
    assert {one.fix for one in done.not_carried if one.changes_training} == {
        "give held-out rows the format of the training rows, or use --validation",
        "give held-out rows the columns of the training rows, or use --validation",
    }


def test_held_out_rows_of_a_blend_keep_the_columns_that_all_its_sources_have(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INFO, "more", INFO["chats"] | {"hf_hub_url": "acme/more"})
    monkeypatch.setitem(INFO, "held", INFO["chats"] | {"hf_hub_url": "acme/held", "split": "train"})
    same = read(dataset="chats,more", eval_dataset="held")
    columns = {"messages": "dialog", "role": "kind", "content": "phrase"}
    assert spec_of(same)["dataset"]["columns"] == columns
    assert (same.problems, same.not_carried) == ([], [])
    mixed = read(dataset="chats,local", eval_dataset="held")
    assert "columns" not in spec_of(mixed)["dataset"]
    assert reasons(mixed, "eval_dataset") == [
        "held-out rows have no columns of their own: the usual names, "
        "not {messages: dialog, role: kind, content: phrase}"
    ]


def test_held_out_rows_are_of_the_split_that_llama_factory_reads(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INFO, "held", INFO["chats"] | {"hf_hub_url": "acme/held"})
    dataset = spec_of(read(eval_dataset="held"))["dataset"]
    assert dataset["train"] == {"uri": "hf://datasets/acme/chats"}
    assert dataset["validation"] == {"uri": "hf://datasets/acme/held", "split": "train"}


def test_rows_that_are_given_have_the_limit_and_the_columns_of_the_first_dataset(read: Read) -> None:
    given = Options(data="s3://data/rows.jsonl", result="s3://models/out")
    done = read(given, dataset="local", max_samples=100)
    assert spec_of(done)["dataset"] == {
        "train": {"uri": "s3://data/rows.jsonl"},
        "format": "Alpaca",
        "columns": {"instruction": "ask", "output": "reply"},
        "maxSamples": 100,
    }
    assert done.not_carried == []
    assert reasons(read(given, dataset="local,chats"), "dataset") == [
        "the rows of --data are read with format, columns and limit of the first dataset, and this one has others"
    ]


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"finetuning_type": "full", "lora_rank": 8}, "lora_rank", "no adapter is trained"),
        ({"pref_beta": 0.3}, "pref_beta", "it belongs to stage dpo or kto"),
        ({"pref_loss": "ipo"}, "pref_loss", "it belongs to stage dpo"),
        ({"kto_chosen_weight": 2}, "kto_chosen_weight", "it belongs to stage kto"),
        ({"stage": "dpo", "dataset": "pairs", "mask_history": True}, "mask_history", "it belongs to stage sft"),
        ({"save_total_limit": 0}, "save_total_limit", "not every checkpoint is kept: checkpoint.saveTotalLimit is 2"),
    ],
)
def test_settings_without_an_effect_are_named(read: Read, changes: dict[str, Any], key: str, reason: str) -> None:
    done = read(**changes)
    assert [(one.reason, one.changes_training) for one in done.not_carried if one.key == key] == [(reason, False)]


def test_a_share_that_changes_a_limit_of_none_and_unknown_words_of_a_description_are_named(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = read(val_size=0.9, max_samples=0)
    assert reasons(done, "val_size") == ["held out are 50 %, not 90 %"]
    assert reasons(done, "max_samples") == ["is not above 0"]
    monkeypatch.setitem(INFO, "odd", INFO["chats"] | {"num_samples": "all", "split_by": "day"})
    assert reasons(read(dataset="odd"), "dataset") == [
        "odd: num_samples is not a number",
        "odd: dataset_info.json has an unknown key split_by",
    ]


def test_settings_of_an_adapter_that_the_trainer_has_too_are_carried(read: Read) -> None:
    done = read(use_dora=True, loraplus_lr_ratio=16, pissa_init=None, additional_target="embed_tokens,lm_head")
    lora = spec_of(done)["tuning"]["lora"]
    assert lora["modulesToSave"] == ["embed_tokens", "lm_head"]
    assert (lora["useDora"], lora["loraPlusLrRatio"], done.problems, done.not_carried) == (True, 16, [], [])


def test_the_system_text_of_rows_without_one_is_carried(read: Read) -> None:
    done = read(default_system="Be brief.\n")
    assert spec_of(done)["dataset"]["systemMessage"] == "Be brief."
    assert done.not_carried == []
    assert "systemMessage" not in spec_of(read(default_system=None))["dataset"]


def test_the_chosen_answers_own_loss_is_carried(read: Read) -> None:
    done = read(stage="dpo", dataset="pairs", pref_ftx=0.5)
    assert (spec_of(done)["dpo"]["sftWeight"], done.not_carried, done.problems) == (0.5, [], [])
    kto = read(stage="kto", dataset="pairs", pref_ftx=0.5)
    assert [(one.key, one.changes_training) for one in kto.not_carried if one.key == "pref_ftx"] == [("pref_ftx", True)]


@pytest.mark.parametrize(
    ("changes", "weights", "end"),
    [
        ({"mix_strategy": "interleave_under", "interleave_probs": "0.7,0.3"}, [0.7, 0.3], "FirstExhausted"),
        ({"mix_strategy": "interleave_over", "interleave_probs": "0.5, 0.5"}, [0.5, 0.5], "AllExhausted"),
        ({"mix_strategy": "interleave_over"}, [1, 1], "AllExhausted"),
        ({"mix_strategy": "concat"}, [None, None], None),
    ],
)
def test_a_mixture_is_carried_with_its_shares_and_its_end(
    read: Read, changes: dict[str, Any], weights: list[float | None], end: str | None
) -> None:
    done = read(dataset="pairs,chats", stage="dpo", **changes)
    train = spec_of(done)["dataset"]["train"]
    assert ([one.get("weight") for one in train["sources"]], train.get("stoppingStrategy")) == (weights, end)
    assert (done.not_carried, done.problems) == ([], [])


@pytest.mark.parametrize(
    ("changes", "key", "field"),
    [
        ({"mix_strategy": "interleave_once"}, "mix_strategy", "dataset.train.stoppingStrategy"),
        ({"mix_strategy": "interleave_over", "interleave_probs": "1"}, "interleave_probs", "dataset.train.sources"),
        ({"dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "dpo.labelSmoothing"),
    ],
)
def test_what_has_a_field_and_cannot_be_carried_names_it(
    read: Read, changes: dict[str, Any], key: str, field: str
) -> None:
    (loss,) = read(dataset="pairs,pages", stage="dpo", **changes).not_carried
    assert (loss.key, field in loss.fix) == (key, True)


def test_an_adapter_that_starts_from_the_weights_is_carried_with_method_lora(read: Read) -> None:
    done = read(pissa_init=True, pissa_iter=16)
    assert (spec_of(done)["tuning"]["lora"]["initLoraWeights"], done.problems) == ("PiSSA", [])
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("pissa_iter", False)]
    quantised = read(pissa_init=True, quantization_bit=4)
    assert [(one.key, one.changes_training) for one in quantised.not_carried] == [("pissa_init", True)]
    assert quantised.problems == []


@pytest.mark.parametrize(
    ("switches", "precision"),
    [
        ({}, None),
        ({"bf16": False}, None),
        ({"bf16": False, "fp16": False}, None),
        ({"bf16": False, "fp16": True}, "FP16"),
        ({"bf16": True}, "BF16"),
        ({"pure_bf16": True, "bf16": False}, "BF16"),
    ],
)
def test_without_a_switch_the_number_format_follows_from_gpu_and_model_and_is_not_32_bits(
    read: Read, switches: dict[str, Any], precision: str | None
) -> None:
    assert spec_of(read(**switches))["hyperparameters"].get("precision") == precision


def test_a_base_that_deepspeed_shares_out_is_shared_out(read: Read) -> None:
    done = read(Options(result="s3://models/out", gpus=4), deepspeed="examples/deepspeed/ds_z3_config.json")
    assert spec_of(done)["tuning"]["lora"]["shardBase"] is True
    assert (done.problems, done.not_carried) == ([], [])
