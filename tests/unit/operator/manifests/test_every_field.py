"""Every field of the spec has an effect with every objective that accepts it.

A field changes the resolved settings, from which the trainer's arguments are made (`test_settings_reach_trainer.py`),
or a pod; for the others, a table names the test that shows the effect.
"""

import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from thin_slice import thin_slice

from finetune_api.defaults import Facts, resolve
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.objectives import Objective
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec

ROOT = Path(__file__).parents[4]
OBJECTIVES = [one.value for one in Objective]
FACTS = Facts(parameters=1_000_000_000, train_rows=1000, validation_rows=50)
Spec = dict[str, Any]

RESOLVED: dict[str, Any] = {
    "tuning.method": "LoRA",
    "tuning.lora.rank": 8,
    "tuning.lora.alpha": 8,
    "tuning.lora.rankPattern": {"q_proj": 4},
    "tuning.lora.alphaPattern": {"q_proj": 4},
    "tuning.lora.dropout": 0.3,
    "tuning.lora.targetModules": ["q_proj"],
    "tuning.lora.targetExperts": True,
    "tuning.lora.useRslora": True,
    "tuning.lora.excludeModules": ["layers.0.self_attn.q_proj"],
    "tuning.lora.modulesToSave": ["embed_tokens"],
    "tuning.lora.useDora": True,
    "tuning.lora.initLoraWeights": "Gaussian",
    "tuning.lora.loraPlusLrRatio": 16,
    "tuning.lora.shardBase": True,
    "distillation.shardTeacher": True,
    "tuning.quantization.doubleQuant": False,
    "hyperparameters.numTrainEpochs": 2.5,
    "hyperparameters.maxSteps": 7,
    "hyperparameters.learningRate": 0.123,
    "hyperparameters.lrSchedulerType": "linear",
    "hyperparameters.warmupSteps": 0.2,
    "hyperparameters.decaySteps": 5,
    "hyperparameters.minLrRatio": 0.3,
    "hyperparameters.neftuneNoiseAlpha": 5,
    "hyperparameters.weightDecay": 0.1,
    "hyperparameters.maxGradNorm": 0.7,
    "hyperparameters.optim": "adamw_8bit",
    "hyperparameters.adamBeta1": 0.8,
    "hyperparameters.adamBeta2": 0.95,
    "hyperparameters.adamEpsilon": 1e-6,
    "hyperparameters.perDeviceTrainBatchSize": 8,
    "hyperparameters.gradientAccumulationSteps": 12,
    "hyperparameters.maxLength": 512,
    "hyperparameters.precision": "FP32",
    "hyperparameters.attention": "SDPA",
    "hyperparameters.gradientCheckpointing": False,
    "hyperparameters.seed": 7,
    "dpo.beta": 0.2,
    "dpo.lossType": "ipo",
    "dpo.labelSmoothing": 0.2,
    "dpo.sftWeight": 0.5,
    "kto.beta": 0.2,
    "kto.desirableWeight": 2,
    "kto.undesirableWeight": 2,
    "rlhf.algorithm": "RLOO",
    "rlhf.numGenerations": 6,
    "rlhf.maxCompletionLength": 64,
    "rlhf.temperature": 0.5,
    "rlhf.beta": 0.2,
    "rlhf.lossType": "grpo",
    "rlhf.scaleRewards": "none",
    "rlhf.maskTruncatedCompletions": True,
    "rlhf.rollouts.engine": "VLLM",
    "rlhf.rollouts.gpuMemoryFraction": 0.5,
    "distillation.maxCompletionLength": 64,
    "distillation.temperature": 0.5,
    "distillation.beta": 0.5,
    "evaluation.steps": 3,
}
"""Fields that change the resolved settings, each with a value that is no objective's default."""

PODS: dict[str, Any] = {
    "storage.caSecretRef.name": "authority",
    "storage.credentialsSecretRef.name": "keys",
    "hub.caSecretRef.name": "authority",
    "modelCache.claimName": "models",
    "model.chatTemplate.configMapKeyRef.name": "other",
    "model.chatTemplate.configMapKeyRef.key": "other",
    "model.credentialsSecretRef.name": "token",
    "distillation.teacher.credentialsSecretRef.name": "token",
    "dataset.train.credentialsSecretRef.name": "token",
    "dataset.validation.credentialsSecretRef.name": "token",
    "output.hub.credentialsSecretRef.name": "token",
    "output.oci.credentialsSecretRef.name": "token",
    "output.oci.caSecretRef.name": "authority",
    "checkpoint.gracePeriodSeconds": 30,
    "resources.numNodes": 2,
    "resources.gpusPerNode": 4,
    "resources.gpuResourceName": "amd.com/gpu",
    "resources.requests": {"cpu": 2},
    "resources.limits": {"memory": "8Gi"},
    "resources.shmSize": "2Gi",
    "resources.workspace.sizeLimit": "5Gi",
    "resources.workspace.storageClassName": "fast",
    "scheduling.queueName": "team-a",
    "scheduling.workloadPriorityClassName": "high",
    "scheduling.topology.mode": "Preferred",
    "scheduling.topology.level": "rack",
    "scheduling.nodeSelector": {"disk": "ssd"},
    "scheduling.tolerations[].key": "gpu",
    "scheduling.tolerations[].operator": "Exists",
    "scheduling.tolerations[].value": "true",
    "scheduling.tolerations[].effect": "NoSchedule",
    "scheduling.tolerations[].tolerationSeconds": 60,
    "scheduling.priorityClassName": "high",
    "scheduling.runtimeClassName": "nvidia",
    "scheduling.schedulerName": "volcano",
    "scheduling.topologySpreadConstraints[].maxSkew": 2,
    "scheduling.topologySpreadConstraints[].topologyKey": "rack",
    "scheduling.topologySpreadConstraints[].whenUnsatisfiable": "ScheduleAnyway",
    "scheduling.topologySpreadConstraints[].minDomains": 2,
    "scheduling.topologySpreadConstraints[].nodeAffinityPolicy": "Ignore",
    "scheduling.topologySpreadConstraints[].nodeTaintsPolicy": "Honor",
    "scheduling.topologySpreadConstraints[].matchLabelKeys": ["app"],
    "resources.claims[].name": "other",
    "resources.claims[].resourceClaimName": "other",
    "resources.claims[].resourceClaimTemplateName": "other",
    "resources.claims[].request": "gpu",
    "trainer.imagePullPolicy": "Always",
    "trainer.imagePullSecrets[].name": "registry",
    "trainer.serviceAccountName": "trainer",
    "trainer.env[].name": "NCCL_DEBUG",
    "trainer.env[].value": "INFO",
    "trainer.podAnnotations": {"example.com/network": "rdma"},
    "trainer.podLabels": {"example.com/cost-centre": "a17"},
    "preflight.queueName": "checks",
    "preflight.resources.requests": {"cpu": 1},
    "preflight.resources.limits": {"memory": "2Gi"},
    "tracking.mlflow.credentialsSecretRef.name": "mlflow",
    "tracking.mlflow.caSecretRef.name": "ca",
    "tracking.wandb.credentialsSecretRef.name": "wandb",
    "tracking.wandb.caSecretRef.name": "ca",
    "rlhf.rewards[].service.credentialsSecretRef.name": "grader",
    "rlhf.rewards[].service.caSecretRef.name": "ca",
    "backoffLimit": 5,
}
"""Fields that change the Job of preflight or of the trainer."""
REQUIRED, PREFERRED = (f"{word}DuringSchedulingIgnoredDuringExecution" for word in ("required", "preferred"))
POD_TERM = {
    "topologyKey": "zone",
    "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["a"]}]},
}
POD_TERM |= {"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["a"]}]}}
NODE_TERM = {part: [{"key": "a", "operator": "In", "values": ["a"]}] for part in ("matchExpressions", "matchFields")}
PODS_OF_AFFINITY = {REQUIRED: [POD_TERM], PREFERRED: [{"weight": 1, "podAffinityTerm": POD_TERM}]}
AFFINITY: dict[str, Any] = {
    "nodeAffinity": {
        REQUIRED: {"nodeSelectorTerms": [NODE_TERM]},
        PREFERRED: [{"weight": 1, "preference": NODE_TERM}],
    },
    "podAffinity": PODS_OF_AFFINITY,
    "podAntiAffinity": PODS_OF_AFFINITY,
}
SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
SPREAD |= {"labelSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["a"]}]}}
PLACED = {
    "key": "b",
    "operator": "NotIn",
    "values": ["x"],
    "matchLabels": {"b": "c"},
    "weight": 7,
    "topologyKey": "rack",
    "namespaces": ["other"],
    "matchLabelKeys": ["app"],
    "mismatchLabelKeys": ["app"],
}
"""The last part of a path below `scheduling.affinity` or a spread's selector, with a value."""

SUBSETS = "tests/unit/trainer/data/test_subsets.py::test_a_subset_and_a_split_are_those_that_the_card_names"
BLEND = "tests/unit/trainer/pipeline/test_blend_rows.py"
DATA, MODELS, TRAINING = "tests/unit/trainer/data", "tests/unit/trainer/models", "tests/integration/trainer_torch"
PUSH, REGISTRY = "tests/integration/trainer/test_hub_push.py", "tests/integration/trainer/test_oci_push.py"
TOKENS = "tests/unit/trainer/tokenization"
POLICY, TRACKERS = "tests/unit/operator/policy", "tests/integration/trainer/test_trackers.py"
PARENTS = f"{POLICY}/test_dependencies.py::test_parents_are_pinned_in_a_separate_write_before_anything_is_created"
GATE = f"{TRAINING}/test_gate.py::test_a_gate_that_is_not_met_fails_with_everything_published"
ABILITY = f"{TRAINING}/test_ability.py"
EXPECTATIONS = "tests/unit/trainer/evaluation/test_expectations.py"
COUNTED = "tests/unit/trainer/pipeline/test_held_out_answers.py"
API_RULES = (
    "tests/integration/api/test_crd_rules.py::"
    "test_a_rule_accepts_the_right_spec_and_names_field_and_fix_for_the_wrong_one"
)
ELSEWHERE = {
    "mode": f"{TRAINING}/test_evaluate.py::test_nothing_is_trained_and_everything_is_published_and_verified",
    "objective": f"{DATA}/checks/test_objectives.py::test_an_objective_takes_what_it_can_learn_from",
    "storage.endpoint": "tests/integration/trainer/test_s3.py::test_an_endpoint_that_never_answers_is_unavailable",
    "storage.region": (
        "tests/unit/trainer/storage/test_s3_client.py::test_requests_are_signed_for_the_region_of_the_job"
    ),
    "storage.forcePathStyle": (
        "tests/unit/trainer/storage/test_s3_client.py::test_a_bucket_is_in_the_path_or_in_the_host_as_the_job_sets_it"
    ),
    "hub.endpoint": (
        "tests/unit/operator/manifests/test_effective_spec.py::test_the_default_hub_completes_a_hub_without_an_endpoint"
    ),
    "model.uri": "tests/unit/trainer/storage/test_hub.py::test_a_model_is_read_at_its_commit_once_it_is_known",
    "model.revision": "tests/unit/trainer/storage/test_hub.py::test_a_model_is_read_at_its_commit_once_it_is_known",
    "model.chatTemplate.name": (
        f"{TOKENS}/test_chosen_template.py::test_a_template_by_name_trains_exactly_the_answers_and_their_ends"
    ),
    "model.chatTemplateKwargs": (
        f"{TOKENS}/test_chosen_template.py::"
        "test_variables_are_defaults_of_the_published_template_that_a_request_may_replace"
    ),
    "tuning.vramBudget": (
        f"{MODELS}/test_resolve_settings.py::test_auto_is_full_where_the_budget_permits_and_the_reason_has_both_numbers"
    ),
    "tuning.initialAdapter.uri": (
        f"{MODELS}/adapters/test_initial.py::test_an_adapter_of_the_same_base_passes_and_fixes_rank_and_modules"
    ),
    "tuning.initialAdapter.fromParent": (
        f"{MODELS}/adapters/test_initial.py::test_a_parents_adapter_passes_with_the_parent_in_the_lineage"
    ),
    "dataset.train.uri": f"{DATA}/test_sources.py::test_one_object_is_itself_whatever_its_name",
    "dataset.train.sha256": f"{DATA}/test_sources.py::test_an_object_has_the_digest_that_the_job_names",
    "dataset.train.revision": (
        "tests/unit/trainer/config/test_resolved_manifest.py::test_rows_of_a_hub_are_named_by_the_commit_that_was_read"
    ),
    "dataset.train.config": SUBSETS,
    "dataset.train.split": SUBSETS,
    "dataset.train.sources[].config": SUBSETS,
    "dataset.train.sources[].split": SUBSETS,
    "dataset.validation.config": SUBSETS,
    "dataset.validation.split": SUBSETS,
    "dataset.train.sources[].uri": f"{BLEND}::test_three_formats_train_in_their_proportions",
    "dataset.train.sources[].sha256": f"{DATA}/test_sources.py::test_an_object_has_the_digest_that_the_job_names",
    "dataset.train.sources[].revision": (
        "tests/unit/trainer/config/test_resolved_manifest.py::test_each_source_of_a_hub_is_named_by_its_own_commit"
    ),
    "dataset.train.sources[].weight": f"{BLEND}::test_three_formats_train_in_their_proportions",
    "dataset.train.sources[].maxSamples": (
        f"{BLEND}::test_a_limited_source_is_read_no_further_or_chosen_from_as_a_whole"
    ),
    "dataset.train.sources[].sample": f"{BLEND}::test_a_limited_source_is_read_no_further_or_chosen_from_as_a_whole",
    "dataset.train.sources[].format": f"{BLEND}::test_each_source_has_its_own_format_and_columns",
    "dataset.train.sources[].columns": f"{BLEND}::test_each_source_has_its_own_format_and_columns",
    "dataset.train.stoppingStrategy": f"{BLEND}::test_rows_of_a_smaller_source_are_repeated_until_all_are_exhausted",
    "dataset.validation.uri": (
        "tests/unit/trainer/pipeline/test_prepare_dataset.py::test_what_the_validation_file_holds_is_not_trained_on"
    ),
    "dataset.validation.sha256": f"{DATA}/test_sources.py::test_an_object_has_the_digest_that_the_job_names",
    "dataset.validation.revision": (
        "tests/unit/trainer/config/test_resolved_manifest.py::test_rows_of_a_hub_are_named_by_the_commit_that_was_read"
    ),
    "dataset.validationSplitPercent": (
        f"{DATA}/checks/test_split.py::test_without_a_percentage_there_is_no_split_and_no_warning"
    ),
    "dataset.format": (
        "tests/unit/trainer/pipeline/test_prepare_dataset.py::test_a_given_format_decides_what_the_rows_are"
    ),
    "dataset.columns": "tests/unit/trainer/pipeline/test_prepare_dataset.py::test_mapped_columns_of_a_pair_are_read",
    "dataset.systemMessage": (
        "tests/unit/trainer/data/checks/test_system_message.py::test_a_row_without_a_system_message_gets_the_datasets"
    ),
    "dataset.trainOn": f"{TOKENS}/test_train_on.py::test_the_tokens_with_a_loss_are_those_of_the_choice",
    "dataset.longRows": "tests/unit/trainer/pipeline/test_prepare_dataset.py::test_rows_over_the_length_are_skipped",
    "dataset.maxRejectedPercent": f"{DATA}/checks/test_summary.py::test_malformed_rows_are_unusable_above_the_limit",
    "dataset.maxSamples": (
        "tests/unit/trainer/pipeline/test_preflight.py::test_max_samples_counts_accepted_training_rows"
    ),
    "hyperparameters.packing": (
        f"{MODELS}/test_resolve_settings.py::test_with_packing_a_step_has_as_many_sequences_as_hold_its_rows"
    ),
    "hyperparameters.fusedKernels": (
        f"{TRAINING}/test_settings_reach_trainer.py::test_fused_kernels_are_reported_if_set"
    ),
    "distillation.teacher.uri": (
        f"{TRAINING}/test_distillation_jobs.py::"
        "test_a_student_is_better_than_its_base_and_its_teacher_is_recorded_but_not_published"
    ),
    "distillation.teacher.revision": (
        f"{MODELS}/files/test_teacher.py::test_a_teacher_stays_at_the_commit_that_was_checked"
    ),
    "rlhf.rewardModel.uri": f"{TRAINING}/test_reward_jobs.py::test_the_chain_of_a_reward_model_and_a_policy",
    "rlhf.rewardModel.jobRef.name": PARENTS,
    "rlhf.rewards[].type": (
        "tests/unit/trainer/rewards/test_computed.py::test_a_pattern_is_found_anywhere_in_the_answer"
    ),
    "rlhf.rewards[].targetTokens": (
        "tests/unit/trainer/rewards/test_computed.py::"
        "test_the_length_reward_is_highest_at_its_target_and_falls_to_zero_on_both_sides"
    ),
    "rlhf.rewards[].pattern": (
        "tests/unit/trainer/rewards/test_computed.py::test_a_pattern_is_found_anywhere_in_the_answer"
    ),
    **dict.fromkeys(
        [
            f"rlhf.rewards[].answer.{name}"
            for name in (
                "match",
                "extract",
                "pattern",
                "absoluteTolerance",
                "relativeTolerance",
                "ignoreCase",
            )
        ],
        "tests/unit/trainer/rewards/test_matching.py::test_an_answer_is_correct_if_it_is_the_reference",
    ),
    "rlhf.rewards[].answer.similarity": (
        "tests/unit/trainer/rewards/test_similarity.py::test_a_similarity_has_its_known_value"
    ),
    "rlhf.rewards[].answer.jsonSchema": (
        "tests/unit/trainer/rewards/test_json_answers.py::test_one_schema_of_the_job_judges_the_answers_to_all_rows"
    ),
    "rlhf.rewards[].answer.column": (
        "tests/unit/trainer/rewards/test_computed.py::test_an_answer_is_compared_with_the_named_column"
    ),
    **dict.fromkeys(
        (f"rlhf.rewards[].service.{name}" for name in ("endpoint", "columns")),
        "tests/integration/trainer_torch/test_reward_jobs.py::test_a_policy_learns_from_the_rewards_of_a_server",
    ),
    "rlhf.rewards[].service.timeoutSeconds": (
        "tests/unit/trainer/rewards/test_service.py::test_a_response_that_comes_byte_by_byte_ends_with_its_time"
    ),
    "rlhf.rewards[].weight": "tests/unit/trainer/rewards/test_computed.py::test_rewards_are_added_up_by_weight",
    "lineage.parentRef.name": PARENTS,
    "lineage.annotations": (
        "tests/unit/trainer/publishing/test_lineage.py::"
        "test_lineage_names_the_jobs_and_the_adapter_that_a_result_builds_on"
    ),
    "evaluation.baseline": (
        f"{TRAINING}/test_endings.py::test_a_loss_that_is_not_finite_is_diverged_and_nothing_is_published"
    ),
    "evaluation.prompts[].prompt": GATE,
    "evaluation.prompts[].system": (
        "tests/unit/trainer/evaluation/test_questions.py::test_the_jobs_own_prompts_are_asked_with_their_system_turn"
    ),
    "evaluation.prompts[].expected": (
        f"{EXPECTATIONS}::test_a_pattern_is_searched_in_the_answer_and_an_absent_one_has_no_result"
    ),
    "evaluation.maxNewTokens": GATE,
    "evaluation.ability.uri": (
        f"{ABILITY}::test_a_model_that_forgot_fails_its_gate_and_the_report_advises_what_to_change"
    ),
    "evaluation.ability.sha256": f"{ABILITY}::test_a_bad_or_changed_file_of_questions_is_refused_before_training",
    "evaluation.ability.maxQuestions": (
        f"{DATA}/test_ability.py::test_the_seed_chooses_the_questions_and_they_keep_their_order"
    ),
    "evaluation.answers.rows": f"{COUNTED}::test_different_prompts_are_answered_up_to_the_number_of_rows",
    "evaluation.answers.match": f"{COUNTED}::test_rows_that_cannot_be_compared_are_passed_over",
    "evaluation.answers.ignoreCase": (
        f"{COUNTED}::test_correct_answers_are_counted_before_and_after_and_the_wrong_ones_shown"
    ),
    **dict.fromkeys(
        (f"evaluation.answers.{name}" for name in ("extract", "pattern", "absoluteTolerance", "relativeTolerance")),
        "tests/unit/trainer/rewards/test_matching.py::test_an_answer_is_correct_if_it_is_the_reference",
    ),
    "evaluation.answers.jsonSchema": (
        "tests/unit/trainer/rewards/test_json_answers.py::test_one_schema_of_the_job_judges_the_answers_to_all_rows"
    ),
    "evaluation.gate.minCorrect": (
        f"{COUNTED}::test_a_gate_on_correct_answers_names_their_share_and_where_to_read_the_wrong_ones"
    ),
    "evaluation.gate.maxForgotten": f"{ABILITY}::test_a_model_that_kept_its_ability_meets_the_gate",
    "evaluation.gate.maxEvalLoss": GATE,
    "evaluation.gate.mustImprove": f"{EXPECTATIONS}::test_what_is_not_reached_is_reported_with_the_figures",
    "evaluation.gate.mustMatchExpected": f"{EXPECTATIONS}::test_what_is_not_reached_is_reported_with_the_figures",
    "earlyStopping.patience": (
        "tests/unit/trainer/evaluation/test_early_stopping.py::"
        "test_patience_counts_evaluations_without_a_fall_of_the_least_delta"
    ),
    "earlyStopping.minDelta": (
        "tests/unit/trainer/evaluation/test_early_stopping.py::test_small_falls_add_up_to_an_improvement"
    ),
    "earlyStopping.warmupEvaluations": (
        "tests/unit/trainer/evaluation/test_early_stopping.py::test_the_first_evaluations_do_not_wear_patience_out"
    ),
    "checkpoint.steps": (
        "tests/unit/trainer/training/test_checkpoints.py::"
        "test_checkpoints_are_as_frequent_as_evaluations_unless_the_job_sets_steps"
    ),
    "checkpoint.saveTotalLimit": "tests/unit/trainer/training/test_checkpoints.py::test_the_newest_are_kept",
    "checkpoint.resumePolicy": (
        "tests/unit/trainer/training/test_checkpoints.py::test_with_never_nothing_is_gone_on_from_and_nothing_saved"
    ),
    "checkpoint.keep": (
        f"{TRAINING}/test_kept_checkpoints.py::"
        "test_the_steps_next_to_the_best_are_published_as_adapters_that_have_their_losses"
    ),
    "output.uri": (
        "tests/unit/trainer/pipeline/test_preflight.py::test_the_canonical_rows_lie_under_the_output_with_their_digests"
    ),
    "output.merge": f"{TRAINING}/test_train.py::test_the_merged_model_answers_as_base_and_adapter",
    "output.gguf": (
        "tests/integration/trainer_torch/test_gguf.py::test_the_files_of_a_job_answer_in_llama_cpp_as_the_report_states"
    ),
    "output.hub.repo": f"{PUSH}::test_a_published_adapter_is_pushed_privately_with_its_card_and_no_other_file",
    "output.hub.private": (
        f"{PUSH}::test_preflight_refuses_a_push_that_would_fail_and_after_training_it_costs_no_result"
    ),
    "output.hub.revision": (
        f"{PUSH}::test_a_full_model_is_pushed_to_a_branch_and_replaces_weights_that_would_be_loaded_in_its_place"
    ),
    "output.oci.repository": f"{REGISTRY}::test_a_published_adapter_is_pulled_by_its_digest_from_a_registry_with_users",
    "output.oci.tag": f"{REGISTRY}::test_model_adapter_and_gguf_files_have_tags_of_their_own",
    "output.oci.format": f"{REGISTRY}::test_a_model_pack_has_plain_files",
    "output.oci.insecure": (
        "tests/unit/trainer/storage/test_oci_auth.py::test_a_repository_is_reached_at_its_registry"
    ),
    "resources.collectiveTimeoutSeconds": (
        "tests/integration/trainer/test_ranks.py::test_a_process_that_hangs_ends_the_attempt_with_the_stacks_of_all"
    ),
    "resources.merge.queueName": f"{POLICY}/test_merge.py::test_a_merge_may_wait_in_a_queue_of_its_own",
    "resources.merge.requests": f"{POLICY}/test_merge.py::test_a_merge_has_its_own_resources_if_the_job_names_them",
    "resources.merge.limits": f"{POLICY}/test_merge.py::test_a_merge_has_its_own_resources_if_the_job_names_them",
    "trainer.image": f"{POLICY}/test_admission.py::test_what_is_refused_by_default_is_allowed_by_its_setting",
    "tracking.mlflow.endpoint": f"{TRACKERS}::test_mlflow_has_figures_settings_and_where_it_all_is",
    "tracking.mlflow.experiment": f"{TRACKERS}::test_mlflow_has_figures_settings_and_where_it_all_is",
    "tracking.mlflow.runName": f"{TRACKERS}::test_mlflow_has_figures_settings_and_where_it_all_is",
    "tracking.wandb.project": f"{TRACKERS}::test_an_offline_run_of_wandb_is_a_file_that_its_reader_reads",
    "tracking.wandb.entity": f"{TRACKERS}::test_an_offline_run_of_wandb_is_a_file_that_its_reader_reads",
    "tracking.wandb.mode": f"{TRACKERS}::test_an_offline_run_of_wandb_is_a_file_that_its_reader_reads",
    "tracking.wandb.endpoint": f"{TRACKERS}::test_wandb_without_a_key_or_an_answer_fails_nothing",
    "tracking.tensorboard": f"{TRAINING}/test_tracking.py::test_tensorboard_itself_reads_every_figure",
    "preflight.enabled": (
        f"{POLICY}/test_without_preflight.py::"
        "test_the_first_job_is_a_trainer_and_the_status_names_what_is_not_checked_before"
    ),
    "suspend": f"{POLICY}/test_suspension.py::test_a_job_created_suspended_creates_nothing_until_it_may",
    "maxPreemptions": f"{POLICY}/history/test_preemptions.py::test_a_limit_of_the_job_counts_all_preemptions",
    "startDeadlineSeconds": (
        f"{POLICY}/test_deadlines.py::test_a_job_whose_trainer_does_not_start_in_time_fails_with_what_it_waited_for"
    ),
    "activeDeadlineSeconds": (
        f"{POLICY}/test_deadlines.py::test_active_time_is_summed_over_runs_and_leaves_waiting_out"
    ),
    "stallTimeoutSeconds": (
        f"{POLICY}/test_deadlines.py::test_a_trainer_that_answers_but_does_not_move_is_started_again_as_a_failure"
    ),
    "ttlSecondsAfterFinished": (
        f"{POLICY}/test_deadlines.py::test_what_is_left_of_a_finished_job_is_removed_in_its_time"
    ),
}
"""Fields whose effect another test shows."""

AROUND: dict[str, Spec] = {
    "hyperparameters.decaySteps": {"hyperparameters": {"lrSchedulerType": "warmup_stable_decay"}},
    "hyperparameters.minLrRatio": {"hyperparameters": {"lrSchedulerType": "cosine_with_min_lr"}},
    "hub.caSecretRef.name": {"model": {"uri": "hf://owner/model"}},
    "model.credentialsSecretRef.name": {"model": {"uri": "hf://owner/model"}},
    **{
        f"model.chatTemplate.configMapKeyRef.{name}": {
            "model": {
                "uri": "s3://models/base",
                "chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "ours"}},
            }
        }
        for name in ("name", "key")
    },
    "distillation.teacher.credentialsSecretRef.name": {"distillation": {"teacher": {"uri": "hf://owner/larger"}}},
    "dataset.train.credentialsSecretRef.name": {"dataset": {"train": {"uri": "hf://datasets/owner/rows"}}},
    "dataset.validation.credentialsSecretRef.name": {
        "dataset": {"train": {"uri": "s3://bucket/rows"}, "validation": {"uri": "hf://datasets/owner/rows"}}
    },
    "resources.numNodes": {"tuning": {"method": "LoRA"}},
    "resources.gpusPerNode": {"tuning": {"method": "LoRA"}},
    "scheduling.workloadPriorityClassName": {"scheduling": {"queueName": "team-a"}},
    "scheduling.topology.mode": {"scheduling": {"topology": {"mode": "Required", "level": "block"}}},
    "scheduling.topology.level": {"scheduling": {"topology": {"mode": "Required", "level": "block"}}},
    "scheduling.tolerations[].operator": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "scheduling.tolerations[].value": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "scheduling.tolerations[].effect": {"scheduling": {"tolerations": [{"key": "gpu"}]}},
    "scheduling.tolerations[].tolerationSeconds": {
        "scheduling": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}
    },
    "resources.workspace.storageClassName": {"resources": {"workspace": {"sizeLimit": "5Gi"}}},
    "resources.claims[].name": {"resources": {"claims": [{"name": "gpu", "resourceClaimName": "one"}]}},
    "resources.claims[].request": {"resources": {"claims": [{"name": "gpu", "resourceClaimName": "one"}]}},
    "resources.claims[].resourceClaimName": {"resources": {"claims": [{"name": "gpu", "resourceClaimName": "one"}]}},
    "resources.claims[].resourceClaimTemplateName": {
        "resources": {"claims": [{"name": "gpu", "resourceClaimTemplateName": "one"}]}
    },
    "trainer.env[].name": {"trainer": {"env": [{"name": "A", "value": "1"}]}},
    "trainer.env[].value": {"trainer": {"env": [{"name": "A", "value": "1"}]}},
    **{
        f"tracking.mlflow.{ref}.name": {"tracking": {"mlflow": {"endpoint": "http://mlflow:5000", "experiment": "one"}}}
        for ref in ("credentialsSecretRef", "caSecretRef")
    },
    **{
        f"tracking.wandb.{ref}.name": {
            "tracking": {"wandb": {"project": "p", "credentialsSecretRef": {"name": "other"}}}
        }
        for ref in ("credentialsSecretRef", "caSecretRef")
    },
    **{
        f"rlhf.rewards[].service.{ref}.name": {
            "rlhf": {"rewards": [{"type": "Service", "service": {"endpoint": "https://grader.example"}}]}
        }
        for ref in ("credentialsSecretRef", "caSecretRef")
    },
    "preflight.queueName": {"scheduling": {"queueName": "team-a"}},
    "output.hub.credentialsSecretRef.name": {
        "output": {
            "uri": "s3://models/out",
            "hub": {"repo": "acme/helpdesk", "credentialsSecretRef": {"name": "other"}},
        }
    },
    **{
        f"output.oci.{ref}.name": {"output": {"uri": "s3://models/out", "oci": {"repository": "r.example/helpdesk"}}}
        for ref in ("credentialsSecretRef", "caSecretRef")
    },
}
"""What a field needs around it."""


def leaves(node: Spec, path: str = "") -> Iterator[str]:
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        items = child.get("items", {})
        if "properties" in child:
            yield from leaves(child, here)
        elif "properties" in items:
            yield from leaves(items, f"{here}[]")
        else:
            yield here


def placed() -> dict[str, Any]:
    """Return the fields of affinity, and of the pods that a spread counts, with a value for each."""
    chosen = ("scheduling.affinity.", "scheduling.topologySpreadConstraints[].labelSelector.")
    paths = [one for one in leaves(structural_schema(FineTuneJobSpec)) if one.startswith(chosen)]
    return {path: PLACED[path.rpartition(".")[2]] for path in paths}


PODS |= placed()


def base(objective: str, path: str) -> Spec:
    spec: Spec = {
        "objective": objective,
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validationSplitPercent": 10},
        "output": {"uri": "s3://models/out"},
    }
    if objective == "RLHF":
        spec["rlhf"] = {"rewards": [{"type": "Length", "targetTokens": 8}]}
        if path.startswith("rlhf.rollouts."):
            spec["tuning"] = {"method": "LoRA"}
        if path == "rlhf.rollouts.gpuMemoryFraction":
            spec["rlhf"]["rollouts"] = {"engine": "VLLM"}
    if objective == "Distillation":
        spec["distillation"] = {"teacher": {"uri": "s3://models/larger"}}
        if path == "distillation.shardTeacher":
            spec["resources"] = {"gpusPerNode": 2}
    if path == "tuning.lora.shardBase":
        spec |= {"tuning": {"method": "LoRA"}, "resources": {"gpusPerNode": 2}}
    if path == "dpo.labelSmoothing" and objective == "DPO":
        spec["dpo"] = {"lossType": "robust"}
    if path.startswith("scheduling.affinity."):
        spec["scheduling"] = {"affinity": copy.deepcopy(AFFINITY)}
    if path.startswith("scheduling.topologySpreadConstraints"):
        spec["scheduling"] = {"topologySpreadConstraints": [copy.deepcopy(SPREAD)]}
    return spec | copy.deepcopy(AROUND.get(path, {}))


def with_field(spec: Spec, path: str, value: Any) -> Spec:
    """Return the spec with the field set; `[]` is the first entry of a list."""
    changed = copy.deepcopy(spec)
    node: Any = changed
    *blocks, last = path.split(".")
    for block in blocks:
        name = block.removesuffix("[]")
        node = node.setdefault(name, [{}] if block.endswith("[]") else {})
        node = node[0] if isinstance(node, list) else node
    node[last] = value
    return changed


def is_refused(spec: Spec) -> bool:
    try:
        return bool(broken_rules(FineTuneJobSpec.model_validate(spec)))
    except ValidationError:
        return True


def test_every_field_is_in_one_of_the_three_tables() -> None:
    tables = [*RESOLVED, *PODS, *ELSEWHERE]
    assert len(tables) == len(set(tables))
    assert set(tables) == set(leaves(structural_schema(FineTuneJobSpec)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("path", RESOLVED)
def test_a_training_setting_changes_the_resolved_settings_or_is_refused(objective: str, path: str) -> None:
    before = base(objective, path)
    assert not is_refused(before)
    after = with_field(before, path, RESOLVED[path])
    if is_refused(after):
        return
    left, right = (resolve(FineTuneJobSpec.model_validate(one), FACTS) for one in (before, after))
    assert left.model_dump(exclude={"method_reason"}) != right.model_dump(exclude={"method_reason"})


@pytest.mark.parametrize("path", RESOLVED)
def test_a_training_setting_is_accepted_with_one_objective_at_least(path: str) -> None:
    accepted = [one for one in OBJECTIVES if not is_refused(with_field(base(one, path), path, RESOLVED[path]))]
    blocks = {"dpo": ["DPO"], "kto": ["KTO"], "rlhf": ["RLHF"], "distillation": ["Distillation"]}
    only = blocks.get(path.partition(".")[0])
    some = {
        "tuning.lora.dropout": [one for one in OBJECTIVES if one not in {"DPO", "KTO", "RLHF", "Distillation"}],
        "tuning.lora.modulesToSave": [one for one in OBJECTIVES if one != "Distillation"],
        "hyperparameters.neftuneNoiseAlpha": ["Instruction", "Chat", "DomainAdaptation"],
    }
    assert accepted == (only or some.get(path, OBJECTIVES))


@pytest.mark.parametrize("objective", thin_slice(OBJECTIVES, "Chat", "RLHF"))
@pytest.mark.parametrize("path", PODS)
def test_a_setting_of_the_pods_changes_a_pod_or_is_refused(built: Any, objective: str, path: str) -> None:
    before = base(objective, path)
    after = with_field(before, path, PODS[path])
    if is_refused(after) and path.startswith(("rlhf.", "distillation.")):
        assert objective.lower() != path.partition(".")[0]
        return
    assert any(unchanged(built, kind, before) != without_config(built(kind, **after)) for kind in KINDS)


KINDS = ("trainer", "preflight")
UNCHANGED: dict[str, Spec] = {}


def unchanged(built: Any, kind: str, spec: Spec) -> Spec:
    """Return the Job of a spec without the field; most fields share it, so that it is built once."""
    key = f"{kind}: {json.dumps(spec, sort_keys=True)}"
    if key not in UNCHANGED:
        assert not is_refused(spec)
        UNCHANGED[key] = without_config(built(kind, **spec))
    return UNCHANGED[key]


def without_config(job: Spec) -> Spec:
    """Return the Job without the name of its ConfigMap, which changes with every field of the spec."""
    plain = copy.deepcopy(job)
    for volume in plain["spec"]["template"]["spec"]["volumes"]:
        volume.pop("configMap", None)
    return plain


@pytest.mark.parametrize("path", ELSEWHERE)
def test_the_test_that_shows_the_effect_of_a_field_exists(path: str) -> None:
    file, _, name = ELSEWHERE[path].partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
