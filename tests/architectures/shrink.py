"""A small configuration of any architecture that transformers names for text."""

from collections.abc import Mapping
from typing import Any

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD_SIZE, VOCABULARY, EXPERTS, CHOSEN, RANK = 64, 4, 2, 16, 512, 4, 2, 32
LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
)  # fmt: skip
KINDS = ("layer_types", "layers_block_type")
HEAD_COUNTS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
               "decoder_attention_heads", "attention_heads")  # fmt: skip
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "embedding_size",
                     "embedding_dim", "word_embed_proj_dim", "out_hidden_size", "projection_dim", "text_hidden_size",
                     "output_hidden_size", "hidden_size_global", "attention_hidden_size", "lru_width"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "moe_intermediate_size",
                     "shared_expert_intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "dim_ff",
                     "dense_intermediate_size", "mlp_dim", "expert_ffn_hidden_size", "share_expert_dim",
                     "shared_experts_intermediate_size", "feed_forward_size"), 2 * HIDDEN),
    **dict.fromkeys(HEAD_COUNTS, HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KEY_VALUE_HEADS),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "d_head",
                     "attention_head_size", "index_head_dim", "linear_head_dim", "mamba_d_head", "mamba_head_dim",
                     "mamba_headdim", "linear_key_head_dim", "linear_value_head_dim"), HEAD_SIZE),
    "qk_head_dim": 2 * HEAD_SIZE,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), RANK),
    **dict.fromkeys(("index_n_heads", "linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), HEADS),
    **dict.fromkeys(("mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 2 * HEADS),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "encoder_hash_byte_group_vocab", "unpadded_vocab_size",
                     "ngram_vocab_size_base"), VOCABULARY),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "hc_lowrank"), HEAD_SIZE),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk",
                     "moe_k", "zero_expert_num"), CHOSEN),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), VOCABULARY),
}  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
"""Those of the tiny tokenizer; all other ids are at the end of the vocabulary, where its texts have none."""

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "latent_channels": 32,
    "num_embeddings": 64,
    "codebook_size": 64,
}
HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 384, "audio_token_offset": 448},
    "apertus1p5_vision_tokenizer": VQ,
    "bamba": {"attn_layer_indices": [1]},
    "chameleon": {"vocabulary_map": {"<image>": 509}},
    "chameleon_vqgan": VQ,
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": CHOSEN},
    "deepseek_v2": {"num_experts_per_tok": CHOSEN},
    "diffusion_gemma_text": {"num_experts": EXPERTS, "top_k_experts": CHOSEN, "moe_intermediate_size": 2 * HIDDEN},
    "dory": {
        "num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots1": {"n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "n_shared_experts": 1},
    "dots3_note_text": {
        "num_key_value_heads": HEADS, "layer_types": ["indexed_attention", "sliding_attention"],
        "rope_parameters": None, "head_dim": 2 * HEAD_SIZE, "per_layer_config": {
            "1": {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "kv_lora_rank": 16,
                  "qk_nope_head_dim": HEAD_SIZE, "v_head_dim": HEAD_SIZE}
        },
    },
    "emu3": {"vocabulary_map": {"<image>": 509, "<|extra_200|>": 508}},
    "emu3_vqgan": VQ,
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [128, 64],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]},
    },
    "falcon_h1": {"mamba_d_ssm": 2 * HIDDEN},
    "fun_asr_nano": {"adaptor_config": {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": 16}},
    "florence_vision": {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [32, HIDDEN], "num_heads": [2, HEADS], "num_groups": [2, HEADS],
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                            "mrope_section": [1, 1, 2]}
    },
    **dict.fromkeys(("glm4v_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text",
                     "qwen2_5_omni_text"), MROPE),
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/2", "spatial_target_layers": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "hunyuan_v1_dense": {"head_dim": HEAD_SIZE},
    "hunyuan_v1_moe": {"head_dim": HEAD_SIZE},
    "hunyuan_vl_text": {
        "head_dim": HEAD_SIZE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2, 2]},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus_vqgan": VQ | {"projection_dim": HIDDEN, "image_token_embed_dim": HIDDEN},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": HEAD_SIZE},
    "mistral4": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1,
                            "original_max_position_embeddings": VOCABULARY}
    },
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "nemotron": {"num_key_value_heads": KEY_VALUE_HEADS},
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_SIZE, "indexer_budget": 16,
        "indexer_compress_ratio": 4, "ple_embed_dim": HIDDEN, "split_ngram_parts": 2,
    },
    "qwen2_5_omni_thinker": {"vision_start_token_id": 480},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 480},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_embds": False, "num_hidden_layers": 2},
    "step3p5": {"sliding_window": 16},
    "wavtokenizer_encoder": {"codebook_dim": HIDDEN},
    "xlstm": {"num_blocks": 2, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 32, "mamba_dt_rank": 4,
        "n_mamba_heads": 2, "layers_block_type": HYBRID,
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": HYBRID, "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What the recipe does not find by a name, by the model type of a configuration or of a part of it."""


def shrink(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with two layers, more if there are more kinds of layers, and the sizes above."""
    counts = [values[one] for one in LAYERS if isinstance(values.get(one), int)]
    count = counts[0] if counts else 0
    kept = _kept_layers(values, count)
    small = {key: _small(key, value, count, kept) for key, value in values.items()}
    heads = {key: values[key] for key in HEAD_COUNTS if isinstance(values.get(key), int)}
    if values.get("num_key_value_heads") in heads.values():
        small["num_key_value_heads"] = HEADS
    small |= _special_ids(values)
    if values.get("per_layer_config"):
        small["per_layer_config"] = {
            str(new): {
                key: 2 * SIZES[key] if key == "head_dim" else SIZES.get(key, value) for key, value in own.items()
            }
            for new, old in enumerate(kept)
            if (own := _of_layer(values["per_layer_config"], old))
        }
    return small | OVERRIDES.get(str(values.get("model_type")), {})


def _small(key: str, value: Any, count: int, kept: list[int]) -> Any:  # noqa: PLR0911 - one line a kind of value
    if isinstance(value, bool) or value is None:
        return value
    if key in LAYERS and isinstance(value, int):
        return len(kept) if value == count else min(value, 2)
    if key in SIZES and isinstance(value, int) and value > 0:
        return SIZES[key]
    if key == "mrope_section":
        return [2, 3, 3]
    if isinstance(value, dict):
        return shrink(value)
    if isinstance(value, list) and count > 2 and len(value) == count:
        values = [value[at] for at in kept]
        return [SIZES.get(key, one) if isinstance(one, int) and not isinstance(one, bool) else one for one in values]
    return value


def _kept_layers(values: Mapping[str, Any], count: int) -> list[int]:
    """Return the first layer of each kind, and two of a model with one kind."""
    kinds = next((values[one] for one in KINDS if values.get(one)), [])
    others = values.get("mlp_layer_types") or [None] * count
    if len(kinds) != count:
        kinds = [None] * count
    pairs = list(zip(kinds, others, strict=False))
    kept: list[int] = []
    for side in (0, 1):
        seen = {pairs[at][side] for at in kept}
        for at, pair in enumerate(pairs):
            if pair[side] not in seen:
                seen.add(pair[side])
                kept.append(at)
    kept = sorted(set(kept))
    return kept if len(kept) > 1 else list(range(min(count, 2)))


def _of_layer(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    return next((dict(value) for key, value in config.items() if int(key) == layer), {})


def _special_ids(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ids of special tokens within the small vocabulary."""
    if "vocab_size" not in values and "text_config" not in values and "bos_token_id" not in values:
        return {}
    names = [key for key in values if key.endswith(("_token_id", "_token_index", "_token_ids"))]
    ids: dict[str, Any] = {}
    for at, name in enumerate(sorted(names)):
        value = values[name]
        if value is None or (isinstance(value, list) and name != "eos_token_id"):
            continue
        ids[name] = SPECIAL.get(name, VOCABULARY - 1 - at)
    return ids
