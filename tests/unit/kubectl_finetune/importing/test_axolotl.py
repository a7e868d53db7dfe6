"""An axolotl file becomes the job that a user would write for the same training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.handoff import config_sha256
from finetune_api.objectives import Objective
from finetune_api.spec import FineTuneJobSpec
from kubectl_finetune.commands.import_file import Imported, import_file
from kubectl_finetune.importing.draft import Options

BASE = """\
base_model: acme/base-1b
datasets:
  - path: acme/chats
    type: chat_template
    field_messages: turns
    message_property_mappings: {role: speaker_kind, content: utterance}
val_set_size: 0.05
output_dir: s3://models/support-bot
adapter: qlora
load_in_4bit: true
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_alpha: 64
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: linear
learning_rate: 1e-4
warmup_ratio: 0.05
weight_decay: 0.01
bf16: true
gradient_checkpointing: true
attn_implementation: flash_attention_2
seed: 7
"""
BY_HAND = """\
objective: Chat
model: {uri: hf://acme/base-1b}
tuning:
  method: QLoRA
  lora: {rank: 32, alpha: 64, dropout: 0.1, targetModules: [q_proj, v_proj]}
dataset:
  train: {uri: hf://datasets/acme/chats}
  validationSplitPercent: 5
  columns: {messages: turns, role: speaker_kind, content: utterance}
  longRows: Skip
hyperparameters:
  maxLength: 4096
  packing: Always
  perDeviceTrainBatchSize: 2
  gradientAccumulationSteps: 8
  numTrainEpochs: 2
  optim: adamw_8bit
  lrSchedulerType: linear
  learningRate: 0.0001
  warmupSteps: 0.05
  weightDecay: 0.01
  maxGradNorm: 1.0
  precision: BF16
  attention: FlashAttention
  gradientCheckpointing: true
  seed: 7
output: {uri: s3://models/support-bot}
"""
Read = Callable[..., Imported]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Import BASE with other values; None removes a key."""

    def call(**changes: Any) -> Imported:
        values = {key: one for key, one in (yaml.safe_load(BASE) | changes).items() if one is not None}
        path = tmp_path / "qlora.yml"
        path.write_text(yaml.safe_dump(values))
        return import_file(path, "axolotl", Options())

    return call


def spec_of(done: Imported) -> dict[str, Any]:
    assert done.manifest is not None, done.refused
    return dict(done.manifest["spec"])


def lost_keys(done: Imported) -> list[str]:
    return [one.key for one in done.not_carried if one.changes_training]


def test_an_axolotl_file_and_a_manifest_by_hand_have_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "qlora.yml"
    path.write_text(BASE)
    done = import_file(path, "", Options())
    assert (done.problems, done.not_carried, done.fill_in) == ([], [], [])
    imported, by_hand = (FineTuneJobSpec.model_validate(one) for one in (spec_of(done), yaml.safe_load(BY_HAND)))
    assert config_sha256(imported) == config_sha256(by_hand)
    assert config_sha256(imported) != config_sha256(by_hand.model_copy(update={"objective": Objective.INSTRUCTION}))


def test_the_number_of_gpus_is_part_of_a_step_and_not_of_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "qlora.yml"
    path.write_text(BASE)
    done = import_file(path, "", Options(gpus=16))
    assert spec_of(done)["resources"] == {"numNodes": 2, "gpusPerNode": 8}
    assert "A step has 256 sequences: 2 x 8 (accumulation) x 16 (GPUs)." in done.text


@pytest.mark.parametrize(
    ("gpus", "resources"),
    [
        (0, {"gpusPerNode": 0}),
        (8, {"gpusPerNode": 8}),
        (9, {"numNodes": 3, "gpusPerNode": 3}),
        (10, {"numNodes": 2, "gpusPerNode": 5}),
        (11, {"numNodes": 11, "gpusPerNode": 1}),
        (17, {"numNodes": 17, "gpusPerNode": 1}),
        (20, {"numNodes": 4, "gpusPerNode": 5}),
    ],
)
def test_gpus_are_spread_over_nodes_that_exist(tmp_path: Path, gpus: int, resources: dict[str, int]) -> None:
    path = tmp_path / "qlora.yml"
    path.write_text(BASE)
    done = import_file(path, "", Options(gpus=gpus))
    assert (spec_of(done)["resources"], done.problems) == (resources, [])


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"adapter": "qlora"}, "QLoRA"),
        ({"adapter": "lora", "load_in_4bit": True}, "QLoRA"),
        ({"adapter": "lora", "load_in_4bit": False}, "LoRA"),
        ({"adapter": None, "load_in_4bit": None, "lora_r": None}, "Full"),
    ],
)
def test_the_method_follows_from_adapter_and_quantisation(read: Read, changes: dict[str, Any], method: str) -> None:
    assert spec_of(read(**changes))["tuning"]["method"] == method


def test_a_base_in_eight_bits_is_named_because_it_becomes_one_in_sixteen(read: Read) -> None:
    done = read(adapter="lora", load_in_4bit=False, load_in_8bit=True)
    assert spec_of(done)["tuning"]["method"] == "LoRA"
    assert lost_keys(done) == ["load_in_8bit"]


def test_accumulation_follows_from_the_batch_size_if_it_is_not_given(read: Read) -> None:
    hyper = spec_of(read(batch_size=12, micro_batch_size=3, gradient_accumulation_steps=None))["hyperparameters"]
    assert (hyper["perDeviceTrainBatchSize"], hyper["gradientAccumulationSteps"]) == (3, 4)


def test_the_defaults_of_axolotl_are_written_where_ours_differ(read: Read) -> None:
    absent = ("sequence_len", "sample_packing", "micro_batch_size", "gradient_accumulation_steps", "num_epochs",
              "optimizer", "lr_scheduler", "warmup_ratio", "lora_dropout")  # fmt: skip
    spec = spec_of(read(**dict.fromkeys(absent)))
    hyper = spec["hyperparameters"]
    assert {name: hyper[name] for name in ("maxLength", "perDeviceTrainBatchSize", "gradientAccumulationSteps")} == {
        "maxLength": 512, "perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 1,
    }  # fmt: skip
    assert (hyper["numTrainEpochs"], hyper["warmupSteps"], hyper["maxGradNorm"]) == (1, 0.03, 1.0)
    assert (hyper["optim"], hyper["lrSchedulerType"], hyper["packing"]) == ("adamw_torch_fused", "cosine", "Never")
    assert spec["tuning"]["lora"]["dropout"] == 0.0


@pytest.mark.parametrize(
    ("given", "carried", "lost"),
    [
        ({}, "Skip", []),
        ({"excess_length_strategy": "drop"}, "Skip", []),
        ({"excess_length_strategy": "truncate"}, None, []),
        ({"excess_length_strategy": "raise"}, None, ["excess_length_strategy"]),
        ({"datasets": [{"path": "acme/texts", "type": "completion"}]}, None, []),
    ],
)
def test_long_rows_are_dropped_as_by_axolotl(
    read: Read, given: dict[str, Any], carried: str | None, lost: list[str]
) -> None:
    done = read(**given)
    assert spec_of(done)["dataset"].get("longRows") == carried
    assert [one.key for one in done.not_carried if one.key == "excess_length_strategy"] == lost


def test_a_number_of_steps_wins_over_epochs_and_of_the_warm_up_over_its_ratio(read: Read) -> None:
    hyper = spec_of(read(max_steps=50, warmup_steps=5))["hyperparameters"]
    assert (hyper["maxSteps"], hyper["warmupSteps"], "numTrainEpochs" in hyper) == (50, 5, False)


@pytest.mark.parametrize(
    ("modules", "linear", "found"),
    [
        (["q_proj"], None, ["q_proj"]),
        (["q_proj"], True, None),
        ("all-linear", None, None),
    ],
)
def test_target_modules_are_carried_and_every_linear_layer_is_the_default(
    read: Read, modules: Any, linear: bool | None, found: list[str] | None
) -> None:
    done = read(lora_target_modules=modules, lora_target_linear=linear)
    assert spec_of(done)["tuning"]["lora"].get("targetModules") == found
    assert lost_keys(done) == []


@pytest.mark.parametrize("output", ["lm_head", "embed_out"])
def test_modules_next_to_every_linear_layer_are_named(read: Read, output: str) -> None:
    done = read(lora_target_modules=["q_proj", "embed_tokens", output], lora_target_linear=True)
    assert "targetModules" not in spec_of(done)["tuning"]["lora"]
    (loss,) = [one for one in done.not_carried if one.changes_training]
    assert (loss.key, loss.fix) == ("lora_target_modules", "list all modules in tuning.lora.targetModules")
    assert loss.reason.endswith(f"and embed_tokens, {output} none")


@pytest.mark.parametrize(
    ("changes", "warmup", "lost"),
    [
        ({}, 0.03, ["warmup_steps (default)"]),
        ({"max_steps": 1000}, 30, []),
        ({"max_steps": 10_000}, 100, []),
        ({"warmup_ratio": 0.03}, 0.03, []),
        ({"warmup_steps": 0, "max_steps": 1000}, 0, []),
    ],
)
def test_the_default_warm_up_ends_after_a_hundred_steps(
    read: Read, changes: dict[str, Any], warmup: float, lost: list[str]
) -> None:
    done = read(**{"warmup_ratio": None} | changes)
    assert (spec_of(done)["hyperparameters"]["warmupSteps"], lost_keys(done)) == (warmup, lost)


def test_modules_that_peft_would_choose_and_regular_expressions_are_named(read: Read) -> None:
    assert lost_keys(read(lora_target_modules=None)) == ["lora_target_modules (default)"]
    assert lost_keys(read(lora_target_modules=r"model.layers.[\d]+.(mlp|self_attn)")) == ["lora_target_modules"]


def test_a_reward_model_has_no_dropout_because_trl_trains_it_without(read: Read) -> None:
    done = read(reward_model=True, datasets=[{"path": "acme/pairs", "type": "bradley_terry.chat_template"}])
    assert (spec_of(done)["objective"], spec_of(done)["tuning"]["lora"]["dropout"]) == ("RewardModel", 0.0)
    assert [one.changes_training for one in done.not_carried if one.key == "lora_dropout"] == [False]


@pytest.mark.parametrize(
    ("kind", "objective", "block"),
    [
        ("dpo", "DPO", {"dpo": {"beta": 0.2}}),
        ("ipo", "DPO", {"dpo": {"lossType": "ipo", "beta": 0.2}}),
        ("kto", "KTO", {"kto": {"beta": 0.2, "desirableWeight": 0.5}}),
    ],
)
def test_preferences_have_their_objective_and_no_dropout(
    read: Read, kind: str, objective: str, block: dict[str, Any]
) -> None:
    extra = {"kto_desirable_weight": 0.5} if kind == "kto" else {}
    done = read(rl=kind, rl_beta=0.2, datasets=[{"path": "acme/pairs", "type": "chat_template.default"}], **extra)
    spec = spec_of(done)
    assert done.problems == []
    assert spec["objective"] == objective
    assert {name: spec[name] for name in block} == block
    assert "dropout" not in spec["tuning"]["lora"]
    assert {one.key: one.reason for one in done.not_carried if not one.changes_training} == {
        "attn_implementation": "it is chosen by GPU, image and model",
        "lora_dropout": f"objective {objective} trains without dropout",
        "sample_packing": f"objective {objective} does not pack rows",
    }
    assert "packing" not in spec["hyperparameters"]


@pytest.mark.parametrize(
    ("changes", "block", "lost"),
    [
        ({"dpo_loss_type": ["ipo"]}, {"lossType": "ipo"}, []),
        ({"dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, 0.2]},
         {"lossType": "sigmoid", "sftWeight": 0.2}, []),
        ({"rpo_alpha": 0.5}, {"sftWeight": 0.5}, []),
        ({"dpo_loss_type": ["robust"], "dpo_label_smoothing": 0.2}, {"lossType": "robust", "labelSmoothing": 0.2}, []),
        ({"dpo_label_smoothing": 0.2, "rl_beta": 0.3}, {"beta": 0.3}, ["dpo_label_smoothing"]),
        ({"rl": "ipo", "dpo_loss_type": ["hinge"]}, {"lossType": "ipo"}, []),
    ],
)  # fmt: skip
def test_losses_of_pairs_are_carried(
    read: Read, changes: dict[str, Any], block: dict[str, Any], lost: list[str]
) -> None:
    done = read(**{"rl": "dpo"} | changes)
    assert (spec_of(done)["dpo"], lost_keys(done), done.problems) == (block, lost, [])


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_the_weight_of_the_reference_is_that_of_block_trl_first(read: Read, kind: str) -> None:
    block = "kto" if kind == "kto" else "dpo"
    done = read(rl=kind, rl_beta=0.2, trl={"beta": 0.4})
    assert (spec_of(done)[block]["beta"], lost_keys(done)) == (0.4, [])
    assert spec_of(read(rl=kind, rl_beta=0.2, trl={"beta": None}))[block]["beta"] == 0.2


def test_the_weight_of_the_reference_of_grpo_may_be_outside_block_trl(read: Read) -> None:
    block = {"reward_funcs": ["think_format_reward"], "num_generations": 4}
    assert spec_of(read(rl="grpo", trl=block, rl_beta=0.3))["rlhf"]["beta"] == 0.3
    assert spec_of(read(rl="grpo", trl=block | {"beta": 0.1}, rl_beta=0.3))["rlhf"]["beta"] == 0.1


@pytest.mark.parametrize(
    ("kind", "objective", "rows"),
    [
        ({"type": "alpaca"}, "Chat", {"format": "Alpaca"}),
        ({"type": "completion", "field": "body"}, "DomainAdaptation", {"format": "Text", "columns": {"text": "body"}}),
        (
            {"type": {"field_instruction": "ask", "field_output": "reply"}},
            "Chat",
            {"columns": {"instruction": "ask", "output": "reply"}},
        ),
        ({"type": "chat_template", "message_field_role": "from", "message_field_content": "value"}, "Chat", {}),
    ],
)
def test_types_of_rows_become_formats_and_columns(
    read: Read, kind: dict[str, Any], objective: str, rows: dict[str, Any]
) -> None:
    spec = spec_of(read(datasets=[{"path": "acme/rows", **kind}]))
    assert spec["objective"] == objective
    assert {name: one for name, one in spec["dataset"].items() if name in {"format", "columns"}} == rows


@pytest.mark.parametrize("other", ["chat_template", "alpaca", {"field_instruction": "ask"}, None])
def test_texts_next_to_conversations_are_refused(read: Read, other: Any) -> None:
    texts, chats = {"path": "acme/pages", "type": "completion"}, {"path": "acme/chats", "type": other}
    done = read(datasets=[chats, texts])
    assert [(one.key, one.reason) for one in done.refused] == [
        ("datasets", "one job trains either texts or conversations")
    ]
    assert done.refused[0].fix == "import them as two files"
    assert spec_of(read(datasets=[texts, texts | {"path": "acme/more"}]))["objective"] == "DomainAdaptation"


def test_rows_that_axolotl_streams_are_downloaded_which_is_named(read: Read) -> None:
    done = read(datasets=None, pretraining_dataset=[{"path": "acme/pages", "type": "pretrain"}])
    assert spec_of(done)["objective"] == "DomainAdaptation"
    (loss,) = [one for one in done.not_carried if one.key == "pretraining_dataset"]
    assert (loss.fix, loss.changes_training) == ("name some of the files in the URI if they are many", False)
    assert "preflight downloads" in loss.reason


def test_a_prompt_style_of_axolotl_is_named_because_the_chat_template_renders_the_rows(read: Read) -> None:
    done = read(datasets=[{"path": "acme/rows", "type": "alpaca"}], chat_template="chatml")
    assert lost_keys(done) == ["datasets[0].type"]
    assert spec_of(done)["model"]["chatTemplate"] == {"name": "ChatML"}


def test_roles_that_preflight_rejects_are_named(read: Read) -> None:
    rows = {"path": "acme/rows", "type": "chat_template"}
    assert lost_keys(read(datasets=[rows | {"roles": {"user": ["human"], "assistant": ["gpt"]}}])) == []
    done = read(datasets=[rows | {"roles": {"assistant": ["agent"]}}])
    assert [(one.key, one.reason) for one in done.not_carried] == [
        ("datasets[0].roles", "a turn with the role agent is rejected")
    ]


@pytest.mark.parametrize(
    ("entry", "train", "samples", "lost"),
    [
        ({"split": "train"}, {}, None, []),
        ({"split": "train[:500]"}, {}, 500, []),
        ({"split": "train_sft"}, {"split": "train_sft"}, None, []),
        ({"split": "test[:20]", "name": "main"}, {"split": "test", "config": "main"}, 20, []),
        ({"split": "train[:5%]"}, {}, None, ["a percentage of the rows cannot be chosen: all are used, not 5 %"]),
        ({"split": "train[10%:]"}, {}, None, ["the split train[10%:] is not chosen"]),
    ],
)
def test_subset_split_and_first_rows_are_carried(
    read: Read, entry: dict[str, Any], train: dict[str, Any], samples: int | None, lost: list[str]
) -> None:
    done = read(datasets=[{"path": "acme/rows", "type": "chat_template", **entry}])
    dataset = spec_of(done)["dataset"]
    assert dataset["train"] == {"uri": "hf://datasets/acme/rows"} | train
    assert dataset.get("maxSamples") == samples
    assert ([one.reason for one in done.not_carried], done.problems) == (lost, [])


@pytest.mark.parametrize(("name", "lost"), [("thinking", []), ("thought", ["field_thinking"])])
def test_the_key_of_the_reasoning_is_lost_only_if_it_is_not_read(read: Read, name: str, lost: list[str]) -> None:
    done = read(datasets=[{"path": "acme/chats", "type": "chat_template", "field_thinking": name}])
    assert [one.key.rpartition(".")[2] for one in done.not_carried if one.changes_training] == lost


@pytest.mark.parametrize(("name", "lost"), [("train", []), ("trainable", []), ("mine", ["message_field_training"])])
def test_a_mark_of_turns_that_is_read_is_not_a_loss(read: Read, name: str, lost: list[str]) -> None:
    done = read(datasets=[{"path": "acme/chats", "type": "chat_template", "message_field_training": name}])
    assert [one.key.rpartition(".")[2] for one in done.not_carried if one.changes_training] == lost


def test_several_datasets_are_sources_with_their_own_columns(read: Read) -> None:
    pairs = {"path": "acme/pairs", "type": {"field_instruction": "ask", "field_output": "reply"}}
    chats = {"path": "acme/chats", "type": "chat_template", "split": "train[:9]", "revision": "v1"}
    done = read(datasets=[chats, pairs, {"path": "./rows.jsonl", "type": "chat_template"}])
    assert spec_of(done)["dataset"]["train"] == {
        "sources": [
            {"uri": "hf://datasets/acme/chats", "revision": "v1", "maxSamples": 9},
            {"uri": "hf://datasets/acme/pairs", "columns": {"instruction": "ask", "output": "reply"}},
            {"uri": "fill-in:./rows.jsonl"},
        ]
    }
    assert [(one.field, one.key) for one in done.fill_in] == [("spec.dataset.train.sources[2].uri", "datasets[2].path")]
    assert (done.problems, done.not_carried) == ([], [])


@pytest.mark.parametrize("path", ["data/mychats", "datasets/mychats", "tmp/rows"])
def test_rows_in_a_folder_of_this_machine_are_left_to_fill_in(read: Read, path: str) -> None:
    done = read(datasets=[{"path": path, "type": "chat_template"}])
    assert spec_of(done)["dataset"]["train"] == {"uri": f"fill-in:{path}"}
    assert [(one.field, one.key) for one in done.fill_in] == [("spec.dataset.train.uri", "datasets[0].path")]


def test_a_dataset_that_is_listed_again_is_one_source(read: Read) -> None:
    done = read(datasets=[{"path": "acme/rows", "type": "chat_template"}] * 2)
    assert spec_of(done)["dataset"]["train"] == {"uri": "hf://datasets/acme/rows"}
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("datasets[1].path", False)]


def test_a_problem_of_one_source_names_its_dataset(read: Read) -> None:
    rows = {"type": "chat_template"}
    done = read(datasets=[{"path": "acme/rows", **rows}, {"path": "acme/more", "split": "x" * 65, **rows}])
    assert [one.field for one in done.problems] == ["datasets[1].path: spec.dataset.train.sources[1].split"]


def test_modules_that_are_trained_in_full_are_carried(read: Read) -> None:
    done = read(lora_modules_to_save=["embed_tokens", "lm_head"])
    assert spec_of(done)["tuning"]["lora"]["modulesToSave"] == ["embed_tokens", "lm_head"]
    assert lost_keys(done) == []
    assert "modulesToSave" not in spec_of(read(lora_modules_to_save=[]))["tuning"]["lora"]
    assert lost_keys(read(lora_modules_to_save=[r"layers\.[01]\..*"])) == ["lora_modules_to_save"]


@pytest.mark.parametrize(
    ("theirs", "ours"), [("eva", "EVA"), ("pissa_niter_16", "PiSSA"), ("gaussian", "Gaussian"), (True, None)]
)
def test_first_values_of_an_adapter_are_carried(read: Read, theirs: Any, ours: str | None) -> None:
    done = read(adapter="lora", peft_init_lora_weights=theirs)
    assert spec_of(done)["tuning"]["lora"].get("initLoraWeights") == ours
    assert lost_keys(done) == []
    assert lost_keys(read(peft_init_lora_weights="loftq")) == ["peft_init_lora_weights"]


def test_ranks_and_alphas_of_single_modules_are_carried(read: Read) -> None:
    pattern = r".*\.layers\.3\..*(q_proj|k_proj)$"
    done = read(lora_rank_pattern={pattern: 32, "down_proj": "8"}, lora_alpha_pattern={pattern: 128})
    lora = spec_of(done)["tuning"]["lora"]
    assert lora["rankPattern"] == {pattern: 32, "down_proj": 8}
    assert lora["alphaPattern"] == {pattern: 128}
    assert done.problems == []
    assert "rankPattern" not in spec_of(read(lora_rank_pattern={}))["tuning"]["lora"]
    lost = read(lora_rank_pattern=["q_proj"], lora_alpha_pattern={"q_proj": 0.5})
    assert {one.key: one.reason for one in lost.not_carried if "pattern" in one.key} == {
        "lora_rank_pattern": "is not a map",
        "lora_alpha_pattern": "is not a whole number",
    }


def test_held_out_rows_of_their_own_win_over_a_share(read: Read) -> None:
    done = read(test_datasets=[{"path": "acme/held-out", "type": "chat_template"}])
    dataset = spec_of(done)["dataset"]
    assert dataset["validation"] == {"uri": "hf://datasets/acme/held-out", "split": "test"}
    assert "validationSplitPercent" not in dataset


def test_held_out_rows_of_another_type_or_with_other_names_are_named(read: Read) -> None:
    training = {"path": "acme/rows", "type": "alpaca"}
    held_out = {"path": "acme/held-out", "type": {"field_instruction": "ask"}, "split": "train[:50]"}
    done = read(datasets=[training], test_datasets=[held_out])
    assert spec_of(done)["dataset"]["validation"] == {"uri": "hf://datasets/acme/held-out", "split": "train"}
    assert [(one.reason, one.changes_training) for one in done.not_carried if one.key == "test_datasets[0].path"] == [
        ("held-out rows have no format of their own: Alpaca, not Auto", True),
        ("held-out rows have no columns of their own: the usual names, not {instruction: ask}", True),
        ("all held-out rows are evaluated, not 50", False),
    ]


def test_the_same_rows_with_other_columns_are_named_as_a_loss(read: Read) -> None:
    rows = {"path": "acme/rows", "type": "chat_template"}
    done = read(datasets=[rows, rows | {"field_messages": "other"}])
    assert [(one.key, one.changes_training) for one in done.not_carried] == [("datasets[1].path", True)]


def test_grpo_carries_its_settings_and_names_rewards_that_are_python(read: Read) -> None:
    block = {"num_generations": 4, "max_completion_length": 64, "reward_funcs": ["think_format_reward", "mine.score"]}
    done = read(rl="grpo", trl=block, datasets=[{"path": "acme/prompts"}], sample_packing=None)
    assert spec_of(done)["rlhf"] == {
        "algorithm": "GRPO",
        "beta": 0.0,
        "numGenerations": 4,
        "maxCompletionLength": 64,
        "rewards": [{"type": "Regex", "pattern": r"(?s)^<think>(?!.*<think>).*?</think>"}],
    }
    assert ("trl.reward_funcs", "mine.score is a Python function, which is not run") in [
        (one.key, one.reason) for one in done.not_carried
    ]
    refused = read(rl="grpo", trl=block | {"reward_funcs": ["mine.score"]}, datasets=[{"path": "acme/prompts"}])
    assert refused.manifest is None
    assert [one.key for one in refused.refused] == ["trl.reward_funcs"]


@pytest.mark.parametrize(("limit", "lost"), [({}, True), ({"max_completion_length": None}, True),
                                             ({"max_completion_length": 512}, False)])  # fmt: skip
def test_answers_of_grpo_without_a_limit_are_named_because_they_end_here(
    read: Read, limit: dict[str, Any], lost: bool
) -> None:
    """axolotl gives TRL no limit, and not TRL's default, if the file has none."""
    block = {"num_generations": 4, "reward_funcs": ["think_format_reward"], **limit}
    done = read(rl="grpo", trl=block, datasets=[{"path": "acme/prompts"}], sample_packing=None)
    assert spec_of(done)["rlhf"]["maxCompletionLength"] == 512
    named = [(one.key, one.fix) for one in done.not_carried if one.changes_training]
    assert (("trl.max_completion_length", "set rlhf.maxCompletionLength") in named) == lost


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rl", "orpo"),
        ("processor_type", "AutoProcessor"),
        ("unfrozen_parameters", ["lm_head"]),
        ("relora", True),
        ("gptq", True),
        ("model_type", "AutoModelForSequenceClassification"),
    ],
)
def test_a_training_that_no_job_can_express_is_refused_with_its_key(read: Read, key: str, value: Any) -> None:
    done = read(**{key: value})
    assert (done.manifest, [one.key for one in done.refused]) == (None, [key])


def test_an_adapter_to_continue_and_experts_are_carried(read: Read) -> None:
    done = read(lora_model_dir="acme/adapter", lora_target_parameters=["experts.down_proj"], lora_dropout=0)
    tuning = spec_of(done)["tuning"]
    assert tuning["initialAdapter"] == {"uri": "hf://acme/adapter"}
    assert tuning["lora"]["targetExperts"] is True
    assert done.problems == []


@pytest.mark.parametrize(
    ("changes", "found", "lost"),
    [
        ({"lr_scheduler": "cosine", "cosine_min_lr_ratio": 0.1},
         {"lrSchedulerType": "cosine_with_min_lr", "minLrRatio": 0.1}, []),
        ({"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}},
         {"lrSchedulerType": "cosine_with_min_lr", "minLrRatio": 0.2}, []),
        ({"lr_scheduler": "cosine_with_min_lr", "learning_rate": 1e-4, "lr_scheduler_kwargs": {"min_lr": 1e-5}},
         {"lrSchedulerType": "cosine_with_min_lr", "minLrRatio": 0.1}, []),
        ({"lr_scheduler": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 50}},
         {"lrSchedulerType": "warmup_stable_decay", "decaySteps": 50}, []),
        ({"lr_scheduler": "linear", "lr_scheduler_kwargs": {"power": 2}},
         {"lrSchedulerType": "linear"}, ["lr_scheduler_kwargs.power"]),
        ({"lr_scheduler": "linear", "cosine_min_lr_ratio": 0.1},
         {"lrSchedulerType": "linear"}, ["cosine_min_lr_ratio"]),
        ({"lr_scheduler": "rex"}, {}, ["lr_scheduler"]),
    ],
)  # fmt: skip
def test_a_schedule_is_carried_with_its_end(
    read: Read, changes: dict[str, Any], found: dict[str, Any], lost: list[str]
) -> None:
    done = read(**changes)
    hyper = spec_of(done)["hyperparameters"]
    assert {
        name: one for name, one in hyper.items() if name in {"lrSchedulerType", "minLrRatio", "decaySteps"}
    } == found
    assert (lost_keys(done), done.problems) == (lost, [])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("adamw_bnb_8bit", "adamw_8bit"),
        ("adamw_torch_8bit", "adamw_8bit"),
        ("paged_adamw_32bit", "paged_adamw_32bit"),
        ("lion_8bit", "lion_8bit"),
        ("muon", None),
    ],
)
def test_an_optimiser_is_carried_or_named(read: Read, name: str, found: str | None) -> None:
    done = read(optimizer=name)
    assert spec_of(done)["hyperparameters"].get("optim") == found
    assert lost_keys(done) == ([] if found else ["optimizer"])


def test_noise_on_embeddings_leaves_the_attention_to_the_trainer(read: Read) -> None:
    done = read(neftune_noise_alpha=5, sample_packing=False)
    hyper = spec_of(done)["hyperparameters"]
    assert (hyper["neftuneNoiseAlpha"], "attention" in hyper, done.problems) == (5, False, [])
    assert [one.key for one in done.not_carried] == ["attn_implementation"]


@pytest.mark.parametrize("key", ["neftune_noise_alpha", "noisy_embedding_alpha"])
def test_rows_with_noise_on_embeddings_are_not_packed_which_is_named(read: Read, key: str) -> None:
    done = read(sample_packing=True, **{key: 5})
    hyper = spec_of(done)["hyperparameters"]
    assert (hyper["neftuneNoiseAlpha"], hyper["packing"], done.problems) == (5, "Never", [])
    assert [(one.key, one.fix) for one in done.not_carried if one.changes_training] == [
        ("sample_packing", "raise gradient_accumulation_steps, or remove the noise")
    ]


@pytest.mark.parametrize(
    ("answers", "problems"), [(4, []), (32, []), (24, ["trl.num_generations: spec.rlhf.numGenerations"])]
)
def test_several_gpus_share_the_groups_of_grpo(tmp_path: Path, answers: int, problems: list[str]) -> None:
    """A step has 32 answers: 2 rows x 8 (accumulation) x 2 GPUs."""
    path = tmp_path / "grpo.yml"
    trl = {"num_generations": answers, "reward_funcs": ["think_format_reward"]}
    path.write_text(yaml.safe_dump(yaml.safe_load(BASE) | {"rl": "grpo", "trl": trl}))
    done = import_file(path, "axolotl", Options(gpus=2))
    assert spec_of(done)["resources"] == {"gpusPerNode": 2}
    assert [one.field for one in done.problems] == problems


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("chatml", "ChatML"),
        ("alpaca", "Alpaca"),
        ("tokenizer_default", None),
        ("tokenizer_default_fallback_chatml", None),
    ],
)
def test_a_chat_template_that_the_trainer_has_too_is_carried(read: Read, name: str, field: str | None) -> None:
    done = read(datasets=[{"path": "acme/rows", "type": "chat_template"}], chat_template=name)
    assert spec_of(done)["model"].get("chatTemplate") == ({"name": field} if field else None)
    assert lost_keys(done) == []


def test_a_chat_template_of_one_dataset_is_that_of_the_job_unless_another_one_is(read: Read) -> None:
    rows = [{"path": f"acme/{name}", "type": "chat_template", "chat_template": name} for name in ("chatml", "alpaca")]
    done = read(datasets=rows)
    assert spec_of(done)["model"]["chatTemplate"] == {"name": "ChatML"}
    assert lost_keys(done) == ["datasets[1].chat_template"]
    assert lost_keys(read(chat_template="llama3")) == ["chat_template"]


def test_variables_of_the_chat_template_become_texts(read: Read) -> None:
    given = {"enable_thinking": False, "reasoning_effort": "high", "budget": 3, "word": "true"}
    done = read(chat_template_kwargs=given)
    assert spec_of(done)["model"]["chatTemplateKwargs"] == {
        "enable_thinking": "false",
        "reasoning_effort": "high",
        "budget": "3",
        "word": '"true"',
    }
    assert lost_keys(read(chat_template_kwargs={"a": [1]})) == ["chat_template_kwargs"]


def test_the_loss_of_every_token_is_carried_for_conversations(read: Read) -> None:
    done = read(train_on_inputs=True)
    assert spec_of(done)["dataset"]["trainOn"] == "Everything"
    assert lost_keys(done) == []
    assert "trainOn" not in spec_of(read(train_on_inputs=False))["dataset"]
    assert "trainOn" not in spec_of(read(train_on_inputs=True, rl="dpo"))["dataset"]


def test_a_named_repository_is_pushed_to(read: Read) -> None:
    done = read(hub_model_id="acme/tuned", hub_private_repo=True, hub_strategy="end")
    assert done.manifest is not None
    assert done.manifest["spec"]["output"]["hub"] == {"repo": "acme/tuned"}
    assert [one.key for one in done.not_carried if "hub" in one.key] == []


@pytest.mark.parametrize(
    ("share", "percent", "reason"),
    [
        (0.07, 7, None),
        (0.9, 50, "held out are 50 %, not 90 %"),
        (0.125, 12, "held out are 12 %, not 12.5 %"),
        (0.001, 1, "held out are 1 %, not 0.1 %"),
    ],
)
def test_a_share_of_held_out_rows_that_changes_is_named(
    read: Read, share: float, percent: int, reason: str | None
) -> None:
    done = read(val_set_size=share)
    assert spec_of(done)["dataset"]["validationSplitPercent"] == percent
    assert [one.reason for one in done.not_carried if one.key == "val_set_size"] == ([reason] if reason else [])
    assert done.problems == []


@pytest.mark.parametrize("key", ["micro_batch_size", "gradient_accumulation_steps"])
def test_a_batch_without_rows_is_named(read: Read, key: str) -> None:
    done = read(**{key: 0})
    assert [(one.key, one.reason, one.fix) for one in done.not_carried if one.changes_training] == [
        (key, "is not above 0", "write a whole number of at least 1")
    ]


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"save_total_limit": 0}, "save_total_limit", "not every checkpoint is kept: checkpoint.saveTotalLimit is 2"),
        ({"save_steps": 0}, "save_steps", "it is by steps here, and their number is not in the file"),
        ({"eval_steps": -1}, "eval_steps", "it is by steps here, and their number is not in the file"),
        ({"eval_steps": 10, "val_set_size": 0}, "eval_steps", "no rows are held out"),
        ({"mlflow_tracking_uri": "http://mlflow:5000"}, "mlflow_tracking_uri", "the experiment is not named"),
        ({"mlflow_experiment_name": "tuned"}, "mlflow_experiment_name", "the server of MLflow is not in the file"),
        ({"wandb_project": "tuned", "wandb_mode": "disabled"}, "wandb_project", "wandb_mode switches its runs off"),
        ({"wandb_entity": "acme"}, "wandb_entity", "it belongs to wandb_project"),
        ({"rl_beta": 0.3}, "rl_beta", "it belongs to DPO, KTO and GRPO"),
        ({"rl": "dpo", "rl_beta": 0.3, "trl": {"beta": 0.1}}, "rl_beta", "trl.beta counts"),
        ({"rl": "kto", "trl": {"num_generations": 4}}, "trl.num_generations", "it belongs to GRPO"),
        ({"kto_desirable_weight": 2}, "kto_desirable_weight", "it belongs to KTO"),
        ({"trl": {"beta": 0.1}}, "trl.beta", "it belongs to GRPO"),
        ({"adapter": None, "load_in_4bit": None}, "lora_r", "no adapter is trained"),
    ],
)
def test_settings_without_an_effect_are_named(read: Read, changes: dict[str, Any], key: str, reason: str) -> None:
    done = read(**changes)
    assert [(one.reason, one.changes_training) for one in done.not_carried if one.key == key] == [(reason, False)]


def test_runs_of_wandb_that_are_offline_stay_so(read: Read) -> None:
    done = read(wandb_project="tuned", wandb_entity="acme", wandb_mode="offline")
    assert spec_of(done)["tracking"] == {"wandb": {"project": "tuned", "entity": "acme", "mode": "Offline"}}
    assert (done.problems, done.not_carried) == ([], [])


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({}, {"uri": "hf://datasets/acme/held-out", "split": "test"}),
        ({"split": "dev"}, {"uri": "hf://datasets/acme/held-out", "split": "dev"}),
        ({"data_files": "dev.jsonl"}, {"uri": "hf://datasets/acme/held-out/dev.jsonl"}),
    ],
)
def test_held_out_rows_without_a_split_are_the_one_that_axolotl_reads(
    read: Read, entry: dict[str, str], found: dict[str, str]
) -> None:
    held_out = {"path": "acme/held-out", "type": "chat_template", **entry}
    done = read(datasets=[{"path": "acme/rows", "type": "chat_template"}], test_datasets=[held_out], val_set_size=0)
    assert (spec_of(done)["dataset"]["validation"], done.problems) == (found, [])


LORA = {"adapter": "lora", "load_in_4bit": None}


@pytest.mark.parametrize(
    ("way", "is_shared"),
    [
        ({"fsdp": ["full_shard", "auto_wrap"]}, True),
        ({"fsdp": ["full_shard", "auto_wrap"], "adapter": "qlora", "load_in_4bit": True}, True),
        ({"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}, True),
        ({"deepspeed": "deepspeed_configs/zero3_bf16.json"}, True),
        ({"deepspeed": "deepspeed_configs/zero2.json"}, False),
        ({"fsdp": ["shard_grad_op"]}, False),
        ({}, False),
    ],
)
def test_a_base_that_the_file_shares_out_over_gpus_is_shared_out(
    tmp_path: Path, way: dict[str, Any], is_shared: bool
) -> None:
    path = tmp_path / "lora.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(BASE) | LORA | way))
    done = import_file(path, "axolotl", Options(gpus=4))
    assert spec_of(done)["tuning"]["lora"].get("shardBase", False) is is_shared
    assert done.problems == []


@pytest.mark.parametrize(
    ("changes", "gpus", "reason"),
    [
        ({}, None, "a base is shared out over several GPUs"),
        ({"peft_use_dora": True}, 4, "each GPU holds the whole base: it is shared out under plain adapters"),
        ({"lora_modules_to_save": ["lm_head"]}, 4, "each GPU holds the whole base: it is shared out under plain"),
        ({"adapter": None, "lora_r": None}, 4, "several GPUs need no setting of their own"),
    ],
)
def test_a_base_that_cannot_be_shared_out_is_named(
    tmp_path: Path, changes: dict[str, Any], gpus: int | None, reason: str
) -> None:
    path = tmp_path / "lora.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(BASE) | LORA | {"fsdp": ["full_shard"]} | changes))
    done = import_file(path, "axolotl", Options(gpus=gpus))
    assert "shardBase" not in spec_of(done)["tuning"].get("lora", {})
    (named,) = [one for one in done.not_carried if one.key == "fsdp"]
    assert named.reason.startswith(reason)
    assert ("--gpus" in named.fix, named.changes_training, done.problems) == (gpus is None, False, [])
