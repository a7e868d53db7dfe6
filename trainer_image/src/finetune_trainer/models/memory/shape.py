"""The sizes of a model, from its configuration and the headers of its weights; nothing is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

HEAD = "lm_head"
EMBEDDINGS = frozenset(
    {
        "embed_tokens", "embed_positions", "wte", "wpe", "embed_in", "embed_out", "word_embeddings", "embeddings", HEAD,
    }
)  # fmt: skip
UNADAPTED_LAYERS = frozenset({"router", "gate"})
"""Layers that choose experts: an adapter there destabilises the routing, and QLoRA does not quantise them."""
EXPERTS = "experts"
STACK = 3
"""Dimensions of a stack of experts; the weights of some convolutions have as many, so the name decides."""
PROJECTIONS_DOWN = frozenset({"down_proj", "w2", "fc2"})
"""Matrices of an expert that transformers makes a stack of their own; it joins the others by their outputs."""
TOWERS = frozenset(
    {
        "visual", "vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens", "multi_modal_projector",
        "audio_tower", "audio_encoder", "embed_vision", "embed_audio",
    }
)  # fmt: skip
"""Parts for images and sound, as transformers names them: training leaves them unchanged."""

Tensors = Mapping[str, tuple[int, ...]]
Stack = tuple[int, int, int]
"""The numbers of experts, outputs and inputs; in some architectures inputs come before outputs."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes on which memory depends; `tensors` holds the shape of every stored tensor by name."""

    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    tied: bool
    tensors: Tensors
    experts_per_token: int = 0
    expert_intermediate: int = 0
    teacher: "ModelShape | None" = None
    """The sizes of the teacher that is held next to it (objective Distillation)."""

    @cached_property
    def parameters(self) -> int:
        """The number of all weights; shared ones count once."""
        return sum(prod(shape) for shape in self.tensors.values())

    @cached_property
    def linear(self) -> Tensors:
        """The linear layers by module name, as stored: QLoRA quantises them, and they can have an adapter."""
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.tensors.items()
            if len(shape) == 2 and name.endswith(".weight") and not EMBEDDINGS & {*name.split(".")[-2:-1]}
            and EXPERTS not in name.split(".") and not UNADAPTED_LAYERS & {*name.split(".")[-2:-1]}
        }  # fmt: skip

    @cached_property
    def experts(self) -> Mapping[str, int]:
        """The number of weights of each module of experts, by its name: QLoRA quantises them as stacks.

        Files have a matrix per expert or a stack of three dimensions; biases are neither.
        """
        found: dict[str, int] = {}
        for name, shape in self.tensors.items():
            module, is_expert, _ = name.partition(f".{EXPERTS}.")
            if is_expert and (len(shape) == STACK or (len(shape) == STACK - 1 and name.endswith(".weight"))):
                found[module] = found.get(module, 0) + prod(shape)
        return found

    @cached_property
    def stacks(self) -> Mapping[str, list[Stack]]:
        """The text decoder's stacks of experts as they are in memory, by the name of the module with the experts."""
        found: dict[str, list[Stack]] = {}
        single: dict[tuple[str, bool], dict[tuple[str, str], tuple[int, ...]]] = {}
        for name, shape in self.tensors.items():
            module, is_expert, rest = name.partition(f".{EXPERTS}.")
            if not is_expert or not is_of_text(name):
                continue
            parts = rest.removesuffix(".weight").split(".")
            if len(shape) == STACK:
                found.setdefault(module, []).append((shape[0], shape[1], shape[2]))
            elif len(shape) == STACK - 1 and parts[0].isdigit() and rest.endswith(".weight"):
                single.setdefault((module, parts[-1] in PROJECTIONS_DOWN), {})[parts[-1], parts[0]] = shape
        for (module, _), matrices in single.items():
            experts = {expert for _, expert in matrices}
            outputs, inputs = sum(out for out, _ in matrices.values()), {size[1] for size in matrices.values()}
            found.setdefault(module, []).append((len(experts), outputs // len(experts), max(inputs)))
        return found

    @cached_property
    def other(self) -> int:
        """The number of weights outside linear layers and experts: embeddings, output head, norms and routers."""
        linear = sum(prod(shape) for shape in self.linear.values())
        return self.parameters - linear - sum(self.experts.values())

    @property
    def head(self) -> int:
        """The number of weights of an output head that is not tied to the embedding."""
        return sum(prod(shape) for name, shape in self.tensors.items() if HEAD in name.split("."))

    def adapted(self, targets: list[str] | None) -> Tensors:
        """Return the linear layers that get an adapter: those with these last names, or all except routers."""
        if targets is None:
            return {name: shape for name, shape in self.linear.items() if is_of_text(name)}
        modules = {
            name.removesuffix(".weight"): shape
            for name, shape in self.tensors.items()
            if len(shape) == 2 and is_of_text(name)
        }
        return {name: shape for name, shape in modules.items() if ends_in(name, targets)}


def with_teacher(shape: ModelShape | None, teacher: ModelShape | None) -> ModelShape | None:
    """Return the shape with that of the teacher; None if one of them is not known, because the memory is not then."""
    return replace(shape, teacher=teacher) if shape and teacher else None


def names_experts(tensors: Iterable[str]) -> bool:
    """Return whether one of these tensors belongs to the experts of a mixture."""
    return any(EXPERTS in name.split(".") for name in tensors)


def read_shape(config: Mapping[str, Any], tensors: Tensors) -> ModelShape | None:
    """Return the shape; None if the configuration does not name the sizes in one of the usual ways."""
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else dict(config)
    hidden = _size(values, "hidden_size", "n_embd", "d_model")
    layers = _size(values, "num_hidden_layers", "n_layer", "num_layers")
    heads = _size(values, "num_attention_heads", "n_head")
    vocabulary = _size(values, "vocab_size")
    if not (hidden and layers and heads and vocabulary):
        return None
    intermediate = _size(values, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    return ModelShape(
        model_type=str(config.get("model_type") or ""),
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        key_value_heads=_size(values, "num_key_value_heads") or heads,
        head_size=_size(values, "head_dim") or hidden // heads,
        tied=not any(HEAD in name.split(".") for name in tensors),
        tensors=tensors,
        experts_per_token=_size(values, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k") or 1,
        expert_intermediate=_size(values, "moe_intermediate_size", "expert_ffn_hidden_size") or intermediate,
    )


def _size(values: Mapping[str, Any], *names: str) -> int | None:
    found = (values[name] for name in names if isinstance(values.get(name), int) and values[name] > 0)
    return next(found, None)


def is_of_text(name: str) -> bool:
    """Return whether a module or tensor is outside the parts for images and sound."""
    return TOWERS.isdisjoint(name.split("."))


def ends_in(module: str, names: Iterable[str]) -> bool:
    """Return whether the module's name is one of these, or ends in one from a dot on."""
    return f".{module}".endswith(tuple(f".{name}" for name in names))
