"""The base model on its device: number formats, quantisation, and what of it is trained."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from finetune_api.handoff import ExitCode
from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.distributed.sharding import (
    join_tied_shards,
    make_trained_whole,
    require_sharded,
    sharding_options,
)
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.attach import attach_adapter
from finetune_trainer.models.adapters.factors import WRAPPED
from finetune_trainer.models.adapters.starts import CHOICES, start_from_weights
from finetune_trainer.models.adapters.whole_modules import is_inside
from finetune_trainer.models.architectures import find_class, text_modules
from finetune_trainer.models.device import set_tf32
from finetune_trainer.models.experts import has_experts, plain_stacks, quantise_experts, quantised_stacks
from finetune_trainer.models.grouped_heads import keep_fused
from finetune_trainer.models.memory.optimisers import refuse_sharded_optimiser
from finetune_trainer.models.memory.shape import UNADAPTED_LAYERS
from finetune_trainer.models.nf4_shares import keep_shares, shard_quantised
from finetune_trainer.models.quantised import Quantised
from finetune_trainer.peft_base import find_base

logger = logging.getLogger(__name__)

DTYPES = {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": torch.float32}
NON_REENTRANT = {"use_reentrant": False}
HEAD = "score.weight"
"""The head of a reward model, which a language model does not have."""
LOADING = logging.getLogger("transformers")
EXPERT_COUNTS = ("num_local_experts", "n_routed_experts")
"""The names of configurations that have no `num_experts`."""
SOFT_CAPS = ("logits_soft_cap", "output_logit_soft_cap")
"""The names of configurations that have no `final_logit_softcapping`."""

transformers_logging.disable_progress_bar()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; TRL requires the object, although it does not tokenise here, and a token to pad with.

    If it names none that the model has an embedding of, another is taken: padding is neither attended to nor trained.
    """
    with model_errors(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if padding is None or padding >= config.get_text_config().vocab_size:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_for_training(
    directory: Path, settings: Resolved, device: torch.device, *, writes_text: bool = True, world: World = ALONE
) -> PreTrainedModel | PeftModel:
    """Load the model as the method trains it: Full in FP32 under autocast and sharded between the processes, LoRA on a
    16-bit base, QLoRA on an NF4 base, both of which are sharded if the job asks for it.

    A model that writes no text has one score instead of the language head, which is trained whole.
    """
    compute = DTYPES[str(settings.precision)]
    set_tf32(settings.precision, device)
    torch.manual_seed(settings.seed or 0)  # loading draws the first weights of a score
    if settings.method == Method.FULL and world.size > 1:
        refuse_sharded_optimiser(settings, world.size)
        return load_sharded(directory, torch.float32, compute, world, writes_text=writes_text)
    if settings.method == Method.FULL:
        return load_plain(directory, torch.float32, device, writes_text=writes_text)
    if settings.method == Method.LORA:
        if settings.shard_base and world.size > 1:
            base = load_sharded(directory, compute, compute, world, writes_text=writes_text)
        else:
            base = load_plain(directory, compute, device, writes_text=writes_text)
        adapted = attach_adapter(base, settings)
        make_trained_whole(adapted)
        if settings.init_lora_weights in CHOICES:
            start_from_weights(adapted, str(settings.init_lora_weights))
        return adapted
    shares = world if settings.shard_base and world.size > 1 else ALONE
    double_quant = bool(settings.double_quant)
    model = load_quantised(directory, compute, double_quant, device, writes_text=writes_text, world=shares)
    adapted = attach_adapter(prepare_quantised(model, checkpoints=can_checkpoint(settings, model)), settings)
    # After the adapter: PEFT takes the modules that hold quantised experts for layers of the same name.
    if shares.size > 1:
        shard_quantised(adapted, shares)
    else:
        quantise_experts(adapted, double_quant, device)
        adapted.to(device)
    if left := unquantised_layers(model):
        logger.warning("%s are not quantised: QLoRA saves no memory on them", describe_layers(model, left))
    return adapted


def prepare_quantised(model: PreTrainedModel, *, checkpoints: bool) -> PreTrainedModel:
    """Freeze the base and switch on checkpointing; what is not in 4 bits stays in the number format it was loaded in.

    PEFT's function for this casts embeddings, norms, experts and head to FP32, and with them what is between layers.
    """
    model.requires_grad_(False)
    if checkpoints:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=NON_REENTRANT)
    return model


def can_checkpoint(settings: Resolved, model: PreTrainedModel | PeftModel) -> bool:
    """Return whether activations are recomputed: only if the architecture supports it."""
    base = find_base(model)
    return bool(settings.gradient_checkpointing) and base.supports_gradient_checkpointing


def load_plain(
    directory: Path, dtype: torch.dtype, device: torch.device, *, writes_text: bool = True
) -> PreTrainedModel:
    """Load the unquantised model in one number format."""
    return _load(directory, writes_text, dtype=dtype).to(device)


def load_sharded(
    directory: Path, dtype: torch.dtype, compute: torch.dtype, world: World, *, writes_text: bool = True
) -> PreTrainedModel:
    """Load this process's shard of the model in one number format, on its device; no process reads the whole model."""
    with model_errors(directory), torch.device("meta"):
        kind = _find_class(directory, writes_text)
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        skeleton = getattr(kind, "from_config", None) or kind._from_config
        options = sharding_options(skeleton(config), world, compute)
    model = _load(directory, writes_text, dtype=dtype, **options)
    require_sharded(model, world.size)
    join_tied_shards(model)
    return model


def load_quantised(
    directory: Path,
    compute: torch.dtype,
    double_quant: bool,
    device: torch.device,
    *,
    writes_text: bool = True,
    world: World = ALONE,
) -> PreTrainedModel:
    """Load the model with its linear layers in NF4, except for the head; `quantise_experts` does the rest.

    A model with experts is loaded into the host's memory: a GPU may not hold them in 16 bits. With several processes
    the model has shares of its quantised weights, which are cut on the GPU, and `shard_quantised` does the rest.
    """
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute,
    )
    with model_errors(directory):
        is_on_gpu = device.type == "cuda" and (world.size > 1 or not has_experts(directory))
    device_map = {"": device.index or 0 if is_on_gpu else "cpu"}
    with keep_shares(world) if world.size > 1 else nullcontext():
        model = _load(directory, writes_text, dtype=compute, quantization_config=quantisation, device_map=device_map)
    _keep_gradients_on_cpu(model)
    return model


def unquantised_layers(model: PreTrainedModel | PeftModel) -> list[str]:
    """Return the text decoder's linear layers and stacks of experts that are not in 4 bits, except for the head."""
    base = find_base(model)
    head = base.get_output_embeddings()
    layers = [
        name.removesuffix(WRAPPED)
        for name, module in text_modules(base)
        if isinstance(module, torch.nn.Linear) and not isinstance(module, Linear4bit) and module is not head
    ]
    unadapted = UNADAPTED_LAYERS | {HEAD.partition(".")[0]}
    linear = [
        name
        for name in layers
        if ".lora_" not in name and not is_inside(name) and name.rpartition(".")[2] not in unadapted
    ]
    return [*linear, *(name for name, _, _ in plain_stacks(base))]


def describe_layers(model: PreTrainedModel | PeftModel, names: list[str]) -> str:
    """Return the number of layers, with one of them as an example."""
    base = find_base(model)
    return f"{len(names)} layers of {type(base).__name__}, for example {names[0]},"


def _load(directory: Path, writes_text: bool, **options: Any) -> PreTrainedModel:
    """Load the model from its folder alone: safetensors only, no remote code, and no random weight instead of a missing
    one, except for the head that a language model does not have."""
    if not writes_text:
        options["num_labels"] = 1
    keep_fused()
    with model_errors(directory), _quiet():
        model, found = _find_class(directory, writes_text).from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    missing = sorted(set(found["missing_keys"]) - (set() if writes_text else {HEAD}))
    if missing:
        raise TrainerError(
            ExitCode.MODEL_UNAVAILABLE,
            f"the model cannot be loaded: its files lack {len(missing)} weights of the architecture, for example "
            f"{missing[0]}",
        )
    name_for_loss(model)
    return model


def _find_class(directory: Path, writes_text: bool) -> Any:
    return find_class(directory) if writes_text else AutoModelForSequenceClassification


def name_for_loss(model: PreTrainedModel) -> None:
    """Add what TRL's loss depends on under the one name that TRL reads: the number of experts for the load-balancing
    loss, and the cap and the scale of the logits, which TRL computes itself."""
    config = model.config.get_text_config()
    experts = [getattr(config, name) for name in EXPERT_COUNTS if hasattr(config, name)]
    caps = [getattr(config, name) for name in SOFT_CAPS if getattr(config, name, None)]
    widths = [config.logits_mup_width_multiplier] if hasattr(config, "logits_mup_width_multiplier") else []
    if experts and not hasattr(config, "num_experts"):
        config.num_experts = experts[0]
    if caps and getattr(config, "final_logit_softcapping", None) is None:
        config.final_logit_softcapping = caps[0]
    if widths and getattr(config, "logit_scale", None) is None:
        config.logit_scale = 1 / widths[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's table of missing weights, which are an error here, out of the log. An error that refers to the
    table gets it: where a weight could not be quantised, only the table has the cause, such as a lack of memory."""
    kept = BufferingHandler(capacity=1000)
    level, handlers, propagates = LOADING.level, LOADING.handlers, LOADING.propagate
    LOADING.setLevel(logging.WARNING)
    LOADING.handlers, LOADING.propagate = [kept], False
    try:
        yield
    except RuntimeError as error:
        if "above report" not in str(error):
            raise
        raise RuntimeError("\n".join([str(error), *(one.getMessage() for one in kept.buffer)])) from error
    finally:
        LOADING.setLevel(level)
        LOADING.handlers, LOADING.propagate = handlers, propagates


def _keep_gradients_on_cpu(model: PreTrainedModel) -> None:
    """Switch off a kernel without a backward pass, for which CPUs with AVX512-BF16 repack the weights in the first
    evaluation: gradients would pass only through the residual stream, and the training would be silently wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantised_layers(model: PreTrainedModel | PeftModel, settings: Resolved) -> Quantised | None:
    """Return the text decoder's weights that compute in NF4, by their names in the base; None if there are none.

    Those of a tower are not part of it: a merged model keeps the base's.
    """
    base = find_base(model)
    names = [name for name, module in text_modules(base) if isinstance(module, Linear4bit)]
    names = [name.removesuffix(WRAPPED) for name in [*names, *quantised_stacks(base)]]
    if not names:
        return None
    return Quantised(
        modules=sorted(set(names)), double_quant=bool(settings.double_quant), compute=str(settings.precision)
    )


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return every trained weight by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def model_errors(directory: Path) -> Iterator[None]:
    """Turn errors of loading into a terminal one, without this machine's path."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).replace(str(directory), "the model folder").splitlines() or [type(error).__name__]
        raise TrainerError(ExitCode.MODEL_UNAVAILABLE, f"the model cannot be loaded: {reason[0][:400]}") from error
