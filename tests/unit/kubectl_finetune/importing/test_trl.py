"""A file for `trl sft`, `dpo`, `kto`, `reward`, `grpo` or `rloo` becomes a job."""

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.defaults import Facts, resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_client.errors import WrongUse
from kubectl_finetune.commands.import_file import Imported, import_file
from kubectl_finetune.importing.draft import Options
from kubectl_finetune.importing.trl import SIGNS_OF_COMMANDS

BASE = {"model_name_or_path": "acme/base-1b", "dataset_name": "acme/rows", "output_dir": "s3://models/out"}
Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Import BASE with other values."""

    def call(options: Options | None = None, **changes: Any) -> Imported:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(BASE | changes))
        return import_file(path, "", options or Options())

    return call


def spec_of(done: Imported) -> dict[str, Any]:
    assert done.manifest is not None, done.refused
    return dict(done.manifest["spec"])


def test_the_defaults_of_trl_are_written_where_ours_differ(read: Read) -> None:
    done = read()
    spec = spec_of(done)
    assert done.problems == []
    assert spec["tuning"] == {"method": "Full"}
    assert spec["hyperparameters"] == {
        "learningRate": 2e-05,
        "maxLength": 1024,
        "perDeviceTrainBatchSize": 8,
        "gradientAccumulationSteps": 1,
        "warmupSteps": 0,
        "numTrainEpochs": 3,
        "packing": "Never",
        "lrSchedulerType": "linear",
        "optim": "adamw_torch_fused",
        "maxGradNorm": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "objective", "rate"),
    [
        ({"packing": True}, "Chat", 2e-5),
        ({"dataset_text_field": "body"}, "DomainAdaptation", 2e-5),
        ({"f_divergence_type": "reverse_kl"}, "DPO", 1e-6),
        ({"desirable_weight": 2.0}, "KTO", 1e-6),
        ({"center_rewards_coefficient": 0.01}, "RewardModel", 1e-4),
        ({"reward_funcs": ["think_format_reward"]}, "RLHF", 1e-6),
        ({"teacher_model_name_or_path": "acme/larger"}, "Distillation", 1e-6),
    ],
)
def test_the_command_follows_from_the_keys_that_only_it_has(
    read: Read, changes: dict[str, Any], objective: str, rate: float
) -> None:
    done = read(**changes)
    spec = spec_of(done)
    assert (spec["objective"], spec["hyperparameters"]["learningRate"], done.problems) == (objective, rate, [])


def test_a_file_that_several_commands_could_read_needs_the_objective(read: Read) -> None:
    with pytest.raises(WrongUse, match="which command of TRL") as raised:
        read(beta=0.2)
    assert raised.value.fix == "add --objective DPO, KTO, RLHF, Distillation, RewardModel or Chat"
    for key, value in (("precompute_ref_log_probs", True), ("max_completion_length", 64), ("disable_dropout", True)):
        with pytest.raises(WrongUse, match="which command of TRL"):
            read(**{key: value})
    assert spec_of(read(Options(objective="kto"), beta=0.2))["kto"] == {"beta": 0.2}
    assert spec_of(read(Options(objective="DPO"), beta=0.2))["dpo"] == {"beta": 0.2, "lossType": "sigmoid"}


@pytest.mark.parametrize(
    ("changes", "tuning"),
    [
        ({}, {"method": "LoRA", "lora": {"rank": 16, "alpha": 32, "dropout": 0.05}}),
        ({"load_in_4bit": True, "lora_r": 8}, {"method": "QLoRA", "quantization": {"doubleQuant": False},
                                               "lora": {"rank": 8, "alpha": 32, "dropout": 0.05}}),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, {"method": "QLoRA"}),
    ],
)  # fmt: skip
def test_an_adapter_has_trls_defaults(read: Read, changes: dict[str, Any], tuning: dict[str, Any]) -> None:
    done = read(use_peft=True, lora_target_modules="all-linear", **changes)
    found = spec_of(done)["tuning"]
    assert {name: found[name] for name in tuning} == tuning
    assert ("quantization" in found) == ("quantization" in tuning)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"packing": False}, ["assistant_only_loss (default)"]),
        ({"assistant_only_loss": True}, []),
        ({"completion_only_loss": True}, []),
        ({"completion_only_loss": False}, []),
    ],
)
def test_a_loss_of_every_token_is_named(read: Read, changes: dict[str, Any], lost: list[str]) -> None:
    assert [one.key for one in read(**changes).not_carried if one.changes_training] == lost


@pytest.mark.parametrize("switch", ["assistant_only_loss", "completion_only_loss"])
def test_a_loss_of_answers_alone_shows_conversations_next_to_the_default_column(read: Read, switch: str) -> None:
    done = read(**{switch: True}, dataset_text_field="text")
    assert spec_of(done)["objective"] == "Chat"
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("dataset_text_field", False)]


@pytest.mark.parametrize(("column", "lost"), [("text", ["dataset_text_field"]), ("body", [])])
def test_texts_that_only_the_default_column_shows_are_an_assumption(read: Read, column: str, lost: list[str]) -> None:
    done = read(dataset_text_field=column)
    assert spec_of(done)["objective"] == "DomainAdaptation"
    assert [one.key for one in done.not_carried if one.changes_training] == lost
    asked = read(Options(objective="DomainAdaptation"), dataset_text_field=column)
    assert [one.key for one in asked.not_carried] == []


@pytest.mark.parametrize("asked", ["Chat", "DPO"])
def test_a_null_length_is_named_because_rows_are_truncated(read: Read, asked: str) -> None:
    done = read(
        Options(objective=asked),
        max_length=None,
        **({"packing": False, "completion_only_loss": True} if asked == "Chat" else {}),
    )
    assert "maxLength" not in spec_of(done)["hyperparameters"]
    assert [(one.key, one.fix) for one in done.not_carried if one.changes_training] == [
        ("max_length", "set hyperparameters.maxLength to the longest row")
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reward_funcs": ["think_format_reward"]}, "rlhf.maxCompletionLength"),
        ({"teacher_model_name_or_path": "acme/larger"}, "distillation.maxCompletionLength"),
    ],
)
def test_a_null_limit_of_sampled_answers_is_named(read: Read, changes: dict[str, Any], field: str) -> None:
    done = read(max_completion_length=None, **changes)
    assert [(one.key, one.fix) for one in done.not_carried] == [("max_completion_length", f"set {field}")]


@pytest.mark.parametrize(
    ("weights", "carried"), [([0.5], [0.5]), (0.5, None), ([0.5, 1.0], None), (["0.5"], None), ([True], None)]
)
def test_weights_of_rewards_are_carried_or_named(read: Read, weights: Any, carried: list[float] | None) -> None:
    done = read(reward_funcs=["think_format_reward"], reward_weights=weights)
    rewards = spec_of(done)["rlhf"]["rewards"]
    assert [one.get("weight", 1) for one in rewards] == (carried or [1])
    assert [one.key for one in done.not_carried] == ([] if carried else ["reward_weights"])


@pytest.mark.parametrize(
    ("changes", "is_lost"),
    [
        ({"steps_per_generation": 4}, True),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 4}, False),
        ({"generation_batch_size": 64}, True),
        ({"generation_batch_size": 32}, False),
    ],
)
def test_answers_that_trl_samples_for_several_steps_at_once_change_the_training(
    read: Read, changes: dict[str, Any], is_lost: bool
) -> None:
    """A step has 32 answers: 8 of each of 4 processes."""
    done = read(reward_funcs=["think_format_reward"], num_processes=4, use_peft=True, **changes)
    key = next(iter(changes))
    assert [one.changes_training for one in done.not_carried if one.key == key] == [is_lost]


def test_a_null_limit_of_gradients_is_no_limit(read: Read) -> None:
    assert spec_of(read(max_grad_norm=None))["hyperparameters"]["maxGradNorm"] == 0
    assert spec_of(read())["hyperparameters"]["maxGradNorm"] == 1.0


@pytest.mark.parametrize("objective", ["KTO", "RewardModel"])
@pytest.mark.parametrize("use_peft", [True, False])
def test_preferences_are_trained_on_several_gpus(read: Read, objective: str, use_peft: bool) -> None:
    done = read(Options(objective=objective, gpus=4), use_peft=use_peft)
    assert done.problems == []
    assert spec_of(done)["resources"] == {"gpusPerNode": 4}


def test_processes_are_gpus_and_part_of_a_step(read: Read) -> None:
    done = read(num_processes=4, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert spec_of(done)["resources"] == {"gpusPerNode": 4}
    assert "A step has 32 rows: 2 x 4 (accumulation) x 4 (GPUs)." in done.text


@pytest.mark.parametrize("use_peft", [True, False])
def test_distillation_is_trained_on_several_gpus(read: Read, use_peft: bool) -> None:
    done = read(teacher_model_name_or_path="acme/larger", num_processes=4, use_peft=use_peft)
    assert (done.refused, done.problems) == ([], [])
    assert spec_of(done)["resources"] == {"gpusPerNode": 4}


def test_held_out_rows_are_those_of_the_same_repository_if_it_is_evaluated(read: Read) -> None:
    assert "validation" not in spec_of(read(eval_strategy="no"))["dataset"]
    held_out = {"uri": "hf://datasets/acme/rows", "split": "test"}
    assert spec_of(read(eval_strategy="steps"))["dataset"]["validation"] == held_out
    done = read(eval_strategy="steps", dataset_test_split="dev[:50]", dataset_config="main")
    assert spec_of(done)["dataset"]["validation"] == held_out | {"split": "dev", "config": "main"}
    assert [one.reason for one in done.not_carried if one.key == "dataset_test_split"] == [
        "all held-out rows are evaluated, not 50"
    ]


def test_rloo_has_its_own_defaults_and_a_reward_model(read: Read) -> None:
    done = read(reward_model_name_or_path="acme/reward", normalize_advantages=True)
    assert spec_of(done)["rlhf"] == {
        "algorithm": "RLOO",
        "beta": 0.05,
        "numGenerations": 2,
        "maxCompletionLength": 512,
        "rewardModel": {"uri": "hf://acme/reward"},
    }


def test_settings_of_grpo_in_a_file_without_it_have_no_effect(read: Read) -> None:
    done = read(Options(objective="Chat"), num_generations=4, completion_only_loss=True)
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("num_generations", False)]


@pytest.mark.parametrize(
    ("changes", "block", "lost"),
    [
        ({"loss_type": "apo_zero"}, {"lossType": "apo_zero"}, []),
        ({"loss_type": "robust", "label_smoothing": 0.2}, {"lossType": "robust", "labelSmoothing": 0.2}, []),
        ({"loss_type": "robust", "label_smoothing": 0}, {"lossType": "robust"}, ["label_smoothing"]),
        ({"loss_type": "robust"}, {"lossType": "robust"}, ["label_smoothing (default)"]),
        ({"loss_type": "sigmoid", "label_smoothing": 0.2}, {"lossType": "sigmoid"}, ["label_smoothing"]),
    ],
)
def test_losses_of_pairs_are_carried_with_their_smoothing(
    read: Read, changes: dict[str, Any], block: dict[str, Any], lost: list[str]
) -> None:
    done = read(Options(objective="DPO"), **changes)
    assert (spec_of(done)["dpo"], done.problems) == (block, [])
    assert [one.key for one in done.not_carried] == lost


def test_another_loss_is_refused(read: Read) -> None:
    for losses in (["sigmoid", "ipo"], ["sft"], ["sigmoid", "sft", "sft"]):
        done = read(Options(objective="DPO"), loss_type=losses)
        assert [(one.key, one.reason) for one in done.refused] == [
            ("loss_type", f"there is no loss {', '.join(losses)}")
        ]
    done = read(loss_type=["sigmoid", "sft"], loss_weights=[1.0])
    assert [(one.key, one.reason) for one in done.refused] == [("loss_weights", "has 1 weights for 2 losses")]


@pytest.mark.parametrize(
    ("changes", "block", "lost"),
    [
        ({"loss_type": ["sigmoid"], "loss_weights": [1.0]}, {"lossType": "sigmoid"}, []),
        ({"loss_type": ["sigmoid", "sft"]}, {"lossType": "sigmoid", "sftWeight": 1.0}, []),
        ({"loss_type": ["sft", "ipo"], "loss_weights": [0.3, 1]}, {"lossType": "ipo", "sftWeight": 0.3}, []),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [2, 1]},
            {"lossType": "sigmoid", "sftWeight": 0.5},
            ["loss_weights"],
        ),
        ({"rpo_alpha": 0.5}, {"lossType": "sigmoid", "sftWeight": 0.5}, []),
    ],
)
def test_the_chosen_answers_own_loss_is_carried(
    read: Read, changes: dict[str, Any], block: dict[str, Any], lost: list[str]
) -> None:
    done = read(Options(objective="DPO"), **changes)
    assert (spec_of(done)["dpo"], done.problems) == (block, [])
    assert [one.key for one in done.not_carried] == lost


def test_a_file_whose_keys_show_no_command_is_taken_for_supervised_tuning_and_this_is_named(read: Read) -> None:
    assert [one.key for one in read().not_carried] == ["objective (default)", "assistant_only_loss (default)"]
    assert [one.key for one in read(Options(objective="DPO")).not_carried] == []


def test_a_teacher_is_carried_and_other_ways_to_sample_are_named(read: Read) -> None:
    teacher = {"teacher_model_name_or_path": "acme/larger", "teacher_model_revision": "v2"}
    done = read(**teacher, beta=0.5, max_completion_length=64, temperature=0.7, top_p=0.9, use_vllm=True)
    assert spec_of(done)["distillation"] == {
        "teacher": {"uri": "hf://acme/larger", "revision": "v2"},
        "maxCompletionLength": 64,
        "temperature": 0.7,
        "beta": 0.5,
    }
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("top_p", True), ("use_vllm", False)]
    assert done.problems == []


@pytest.mark.parametrize(("asked", "lost"), [("DPO", []), ("Chat", ["datasets"])])
def test_the_fractions_of_a_mixture_are_weights(read: Read, asked: str, lost: list[str]) -> None:
    mixture = [{"path": "acme/one", "fraction": 0.7}, {"path": "acme/two", "fraction": 0.3}]
    loss = {"completion_only_loss": True} if asked == "Chat" else {}
    done = read(Options(objective=asked), datasets=mixture, use_peft=False, **loss)
    assert [one["weight"] for one in spec_of(done)["dataset"]["train"]["sources"]] == [0.7, 0.3]
    assert ([one.key for one in done.not_carried if one.changes_training], done.problems) == (lost, [])


def test_rows_that_are_listed_again_add_their_fractions(read: Read) -> None:
    paths = ["acme/one", "acme/two", "acme/one"]
    done = read(Options(objective="DPO"), use_peft=False, datasets=[{"path": path, "fraction": 0.25} for path in paths])
    assert [one["weight"] for one in spec_of(done)["dataset"]["train"]["sources"]] == [0.5, 0.25]


def test_a_mixture_is_several_sources_and_a_fraction_of_one_of_them_is_named(read: Read) -> None:
    mixture = [{"path": "acme/one", "name": "main"}, {"path": "acme/two", "fraction": 0.5}]
    done = read(datasets=mixture, assistant_only_loss=True)
    assert spec_of(done)["dataset"]["train"]["sources"] == [
        {"uri": "hf://datasets/acme/one", "config": "main"},
        {"uri": "hf://datasets/acme/two"},
    ]
    assert [one.key for one in done.not_carried] == ["dataset_name", "datasets"]


def test_a_push_to_a_hub_is_carried_as_private_unless_the_file_has_it_otherwise(read: Read) -> None:
    asked = {"push_to_hub": True, "hub_model_id": "acme/tuned"}
    done = read(**asked)
    assert spec_of(done)["output"] == {"uri": "s3://models/out", "hub": {"repo": "acme/tuned"}}
    (loss,) = [one for one in done.not_carried if one.key == "hub_model_id"]
    assert (loss.reason, loss.changes_training) == ("a repository that does not exist is created as private", False)
    public = read(**asked, hub_private_repo=False, hub_revision="tuned", hub_strategy="every_save")
    hub = {"repo": "acme/tuned", "private": False, "revision": "tuned"}
    assert spec_of(public)["output"]["hub"] == hub
    assert [one.key for one in public.not_carried if one.key.startswith("hub_")] == ["hub_strategy"]
    assert public.problems == []


@pytest.mark.parametrize(
    ("asked", "key", "reason"),
    [
        ({"push_to_hub": True}, "push_to_hub", "the repository is not named"),
        ({"push_to_hub": True, "hub_model_id": "tuned"}, "hub_model_id", "the repository tuned is not owner/name"),
        ({"hub_model_id": "acme/tuned"}, "hub_model_id", "nothing is pushed without push_to_hub"),
        ({"push_to_hub": True, "hub_model_id": "acme/tuned", "hub_token": "hf_abc"}, "hub_token", "a secret does not"),
    ],
)
def test_a_push_that_is_not_carried_is_named(read: Read, asked: dict[str, Any], key: str, reason: str) -> None:
    done = read(**asked)
    (loss,) = [one for one in done.not_carried if one.key == key]
    assert loss.reason.startswith(reason)
    assert ("hub" in spec_of(done)["output"]) is (key == "hub_token")


def fields_of(folder: Path, name: str) -> set[str]:
    """Return the settings of a command of TRL, without those of transformers' Trainer."""
    tree = ast.parse((folder / "trainer" / f"{name}_config.py").read_text())
    found = {
        one.target.id
        for block in tree.body
        if isinstance(block, ast.ClassDef)
        for one in block.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    return found | ({"reward_funcs", "reward_model_name_or_path"} if name in {"grpo", "rloo"} else set())


def trl_folder() -> Path:
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("TRL is not installed")
    return Path(spec.submodule_search_locations[0])


def default_of_grpo(setting: str) -> Any:
    """Return the default of a setting of `GRPOConfig`."""
    for one in ast.walk(ast.parse((trl_folder() / "trainer" / "grpo_config.py").read_text())):
        if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == setting and isinstance(one.value, ast.Call):
            return next(ast.literal_eval(name.value) for name in one.value.keywords if name.arg == "default")
    raise AssertionError(f"GRPOConfig has no {setting}")


@pytest.mark.parametrize(
    ("given", "carried", "lost"),
    [
        ({}, {}, []),
        ({"loss_type": "grpo"}, {"lossType": "grpo"}, []),
        ({"loss_type": "dr_grpo", "scale_rewards": False}, {"lossType": "dr_grpo", "scaleRewards": "none"}, []),
        ({"loss_type": "bnpo"}, {}, ["loss_type"]),
        ({"scale_rewards": True}, {"scaleRewards": "group"}, []),
        ({"scale_rewards": "batch"}, {"scaleRewards": "batch"}, []),
        ({"mask_truncated_completions": True}, {"maskTruncatedCompletions": True}, []),
        ({"mask_truncated_completions": False}, {}, []),
        ({"epsilon": 0.1, "epsilon_high": 0.28, "importance_sampling_level": "sequence"}, {}, []),
        ({"num_iterations": 2}, {}, ["num_iterations"]),
    ],
)
def test_the_loss_of_grpo_is_carried_where_there_is_the_same(
    read: Read, given: dict[str, Any], carried: dict[str, Any], lost: list[str]
) -> None:
    done = read(reward_funcs=["think_format_reward"], **given)
    fields = {"lossType", "scaleRewards", "maskTruncatedCompletions"}
    assert {name: one for name, one in spec_of(done)["rlhf"].items() if name in fields} == carried
    assert [one.key for one in done.not_carried if one.changes_training] == lost


def test_the_defaults_of_grpos_loss_are_trls() -> None:
    spec = {
        "objective": "RLHF",
        "rlhf": {"rewards": [{"type": "Length", "targetTokens": 8}]},
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
        "output": {"uri": "s3://models/out"},
    }
    it = resolve(FineTuneJobSpec.model_validate(spec), Facts(parameters=1, train_rows=10, validation_rows=0))
    assert (it.loss_type, it.scale_rewards) == (default_of_grpo("loss_type"), default_of_grpo("scale_rewards"))
    assert default_of_grpo("mask_truncated_completions") is False


def test_a_key_that_shows_a_command_is_of_no_other_command_of_the_trainers_trl() -> None:
    folder = trl_folder()
    fields = {name: fields_of(folder, name) for name in ("sft", "dpo", "kto", "reward", "grpo", "rloo", "distillation")}
    for command, signs in SIGNS_OF_COMMANDS.items():
        same = {command, "rloo"} if command == "grpo" else {command}
        others = set().union(*(fields[name] for name in fields if name not in same))
        assert signs & others == set(), command
        assert signs - {"rloo_k"} <= fields[command], command


def test_a_file_without_a_reward_is_refused_with_the_option_for_other_commands(read: Read) -> None:
    (refused,) = read(num_generations=4).refused
    assert refused.reason == "no reward of the file can be computed"
    assert refused.fix == "rlhf.rewards lists those that can; if the file is for DPO or KTO, use --objective"


def test_a_limit_of_the_answers_of_pairs_is_named(read: Read) -> None:
    done = read(Options(objective="KTO"), max_completion_length=64)
    assert [(one.key, one.reason, one.changes_training) for one in done.not_carried] == [
        ("max_completion_length", "an answer is truncated together with its prompt, at hyperparameters.maxLength", True)
    ]


@pytest.mark.parametrize(("loss", "lost"), [("nll", []), ("chunked_nll", []), ("dft", ["loss_type"])])
def test_losses_that_only_supervised_tuning_has_show_it(read: Read, loss: str, lost: list[str]) -> None:
    done = read(loss_type=loss)
    assert spec_of(done)["objective"] == "Chat"
    assert [one.key for one in done.not_carried if one.changes_training] == ["assistant_only_loss (default)", *lost]


@pytest.mark.parametrize(
    ("asked", "changes", "key", "reason"),
    [
        ("Chat", {"lora_r": 8}, "lora_r", "no adapter is trained without use_peft"),
        ("Chat", {"beta": 0.3}, "beta", "objective Chat does not use it"),
        ("DPO", {"desirable_weight": 2}, "desirable_weight", "objective DPO does not use it"),
        ("DPO", {"assistant_only_loss": True}, "assistant_only_loss", "objective DPO does not use it"),
        ("DPO", {"dataset_text_field": "body"}, "dataset_text_field", "objective DPO does not use it"),
        ("DPO", {"dataset_test_split": "dev"}, "dataset_test_split", "nothing is evaluated without eval_strategy"),
    ],
)
def test_keys_of_another_command_are_named(
    read: Read, asked: str, changes: dict[str, Any], key: str, reason: str
) -> None:
    done = read(Options(objective=asked), **{"use_peft": False, "completion_only_loss": True} | changes)
    assert [(one.reason, one.changes_training) for one in done.not_carried if one.key == key] == [(reason, False)]


def test_entries_of_a_mixture_and_what_it_replaces_are_named(read: Read) -> None:
    mixture = [{"path": "acme/one", "data_dir": "en", "columns": ["messages"]}]
    settings = {"test_split_size": 0.9, "eval_strategy": "steps", "completion_only_loss": True, "use_peft": False}
    done = read(datasets=mixture, **settings)
    dataset = spec_of(done)["dataset"]
    assert (dataset["validationSplitPercent"], "validation" in dataset, done.problems) == (50, False, [])
    assert [(one.key, one.changes_training) for one in done.not_carried] == [
        ("dataset_name", False),
        ("datasets[0].columns", True),
        ("datasets[0].data_dir", True),
        ("test_split_size", True),
    ]


def test_dora_is_carried_without_dropout_as_the_trainer_has_it(read: Read) -> None:
    done = read(
        use_peft=True, use_dora=True, lora_dropout=0, lora_target_modules="all-linear", packing=True,
        lora_modules_to_save=["lm_head"],
    )  # fmt: skip
    assert spec_of(done)["tuning"]["lora"]["modulesToSave"] == ["lm_head"]
    assert spec_of(done)["tuning"]["lora"]["useDora"] is True
    assert done.problems == []
    assert [one.key for one in done.not_carried] == ["assistant_only_loss (default)"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"warmup_steps": 10}, (0, ["warmup_steps"])),
        ({"warmup_ratio": 0.1}, (0, ["warmup_ratio"])),
        ({}, (0, [])),
        ({"warmup_ratio": 0.1, "lr_scheduler_type": "constant_with_warmup"}, (0.1, [])),
    ],
)
def test_a_warm_up_that_schedule_constant_ignores_is_named(
    read: Read, changes: dict[str, Any], expected: tuple[float, list[str]]
) -> None:
    done = read(**{"lr_scheduler_type": "constant"} | changes)
    lost = [one.key for one in done.not_carried if one.key.startswith("warmup")]
    assert (spec_of(done)["hyperparameters"]["warmupSteps"], lost) == expected
    assert done.problems == []


@pytest.mark.parametrize(
    ("changes", "dropout", "lost"),
    [
        ({}, 0.0, {}),
        ({"lora_dropout": 0.1}, 0.0, {"lora_dropout": False}),
        ({"disable_dropout": False}, 0.05, {}),
        ({"disable_dropout": False, "lora_dropout": 0.1}, 0.1, {}),
    ],
)
def test_a_reward_model_has_the_dropout_that_trl_trains_it_with(
    read: Read, changes: dict[str, Any], dropout: float, lost: dict[str, bool]
) -> None:
    done = read(Options(objective="RewardModel"), use_peft=True, lora_target_modules="all-linear", **changes)
    assert (spec_of(done)["tuning"]["lora"]["dropout"], done.problems) == (dropout, [])
    assert {one.key: one.changes_training for one in done.not_carried} == lost


@pytest.mark.parametrize(
    ("changes", "lost"),
    [({}, ["lora_dropout (default)"]), ({"disable_dropout": True}, []), ({"lora_dropout": 0}, [])],
)
def test_dropout_that_trl_has_by_default_and_grpo_here_has_not_is_named(
    read: Read, changes: dict[str, Any], lost: list[str]
) -> None:
    done = read(reward_funcs=["think_format_reward"], use_peft=True, lora_target_modules="all-linear", **changes)
    assert [one.key for one in done.not_carried if one.changes_training] == lost
    assert "dropout" not in spec_of(done)["tuning"]["lora"]


@pytest.mark.parametrize(
    ("changes", "is_shared"),
    [
        ({"accelerate_config": "fsdp2"}, True),
        ({"accelerate_config": "zero3"}, True),
        ({"accelerate_config": "multi_gpu"}, False),
        ({"fsdp": "full_shard"}, True),
        ({"fsdp_config": {"version": 2}}, False),
    ],
)
def test_a_base_that_accelerate_shares_out_is_shared_out(read: Read, changes: dict[str, Any], is_shared: bool) -> None:
    done = read(use_peft=True, num_processes=4, lora_target_modules="all-linear", **changes)
    assert (spec_of(done)["tuning"]["lora"].get("shardBase", False), done.problems) == (is_shared, [])
    assert [one.key for one in done.not_carried if not one.changes_training] == ([] if is_shared else [*changes])


@pytest.mark.parametrize(("gpus", "is_shared"), [(4, True), (1, False)])
def test_of_a_distillation_the_teacher_is_shared_out(read: Read, gpus: int, is_shared: bool) -> None:
    teacher = {"teacher_model_name_or_path": "acme/larger", "accelerate_config": "fsdp2", "num_processes": gpus}
    done = read(**teacher, use_peft=True, lora_target_modules="all-linear")
    assert (spec_of(done)["distillation"].get("shardTeacher", False), done.problems) == (is_shared, [])
    assert "shardBase" not in spec_of(done)["tuning"]["lora"]


def test_a_configuration_of_accelerate_needs_the_number_of_gpus(read: Read) -> None:
    (named,) = [one for one in read(accelerate_config="fsdp2", packing=False).not_carried if not one.changes_training]
    assert (named.key, "--gpus" in named.fix) == ("accelerate_config", True)
