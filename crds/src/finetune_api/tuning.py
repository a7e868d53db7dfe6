"""How weights are updated: the method, the adapter and the quantised base."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from finetune_api.blocks import GRANULAR, SET, Block, ModelUri, ModuleName, Quantity, cel, with_rule, with_rules


class Method(StrEnum):
    """How weights are updated."""

    AUTO = "Auto"
    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


Switch = Annotated[bool | None, AfterValidator(lambda value: value or None)]
"""A setting that is off by default: false is the same as no value."""
Modules = Annotated[list[ModuleName], Field(min_length=1, max_length=64, json_schema_extra=SET)]
Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[int, Field(ge=1, le=512)]
ModulePattern = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,256}$")]
UNBOUNDED = "[)][*+{]|([*+{].*){5}"
"""What a pattern of modules must not contain: a group that is repeated, or more than four repetitions. Comparing one
with a name could take hours."""
PATTERNS = Field(min_length=1, max_length=32, json_schema_extra=GRANULAR)


class InitLoraWeights(StrEnum):
    """First values of an adapter."""

    DEFAULT = "Default"
    GAUSSIAN = "Gaussian"
    PISSA = "PiSSA"
    OLORA = "OLoRA"
    EVA = "EVA"


FROM_WEIGHTS = "self.initLoraWeights in ['PiSSA', 'OLoRA']"
PLAIN_START = (
    f"!has(self.initLoraWeights) || !({FROM_WEIGHTS}) || "
    "((!has(self.useDora) || !self.useDora) && (!has(self.targetExperts) || !self.targetExperts))"
)
HALF_RANK = f"!has(self.initLoraWeights) || !({FROM_WEIGHTS}) || !has(self.rank) || self.rank <= 128"
HALF_RANKS = (
    f"!has(self.initLoraWeights) || !({FROM_WEIGHTS}) || !has(self.rankPattern) || "
    "self.rankPattern.all(key, self.rankPattern[key] <= 128)"
)
START_WITH_LORA = (
    "!has(self.lora) || !has(self.lora.initLoraWeights) || !(self.lora.initLoraWeights in ['PiSSA', 'OLoRA']) || "
    "self.method == 'LoRA'"
)
START_OF_A_NEW_ADAPTER = "!has(self.initialAdapter) || !has(self.lora) || !has(self.lora.initLoraWeights)"
INPUTS_OF_LAYERS = (
    "!has(self.initLoraWeights) || self.initLoraWeights != 'EVA' || !has(self.targetExperts) || !self.targetExperts"
)
BOUNDED = {
    field: f"!has(self.{field}) || self.{field}.all(key, !key.matches('{UNBOUNDED}'))"
    for field in ("rankPattern", "alphaPattern")
}
EXPERTS_OF_ONE_RANK = (
    "!has(self.targetExperts) || !self.targetExperts || (!has(self.rankPattern) && !has(self.alphaPattern))"
)
EXPERTS_WITHOUT_DORA = "!has(self.targetExperts) || !self.targetExperts || !has(self.useDora) || !self.useDora"
PLAIN_ON_SHARDS = (
    "!has(self.shardBase) || !self.shardBase || ((!has(self.useDora) || !self.useDora) && "
    "(!has(self.targetExperts) || !self.targetExperts) && !has(self.modulesToSave) && "
    "(!has(self.initLoraWeights) || self.initLoraWeights in ['Default', 'Gaussian']))"
)


class Lora(Block):
    """Low-rank adapter settings, under PEFT's names."""

    model_config = with_rules(
        cel(
            "!has(self.targetExperts) || !self.targetExperts || !has(self.dropout) || self.dropout == 0.0",
            "an adapter on experts has no dropout: remove tuning.lora.dropout, or set targetExperts false",
            ".dropout",
        ),
        cel(
            EXPERTS_WITHOUT_DORA,
            "an adapter on experts has no magnitudes: remove tuning.lora.useDora, or set targetExperts false",
            ".useDora",
        ),
        cel(
            PLAIN_START,
            "first values from the weights are of plain adapters on linear layers: remove useDora and "
            "targetExperts, or set initLoraWeights to Default or Gaussian",
            ".initLoraWeights",
        ),
        cel(
            HALF_RANK,
            "an adapter that starts from the weights is published with twice its rank, at most 256: set rank to "
            "128 or less, or initLoraWeights to Default or Gaussian",
            ".rank",
        ),
        cel(
            HALF_RANKS,
            "an adapter that starts from the weights is published with twice its ranks, at most 256: set each rank "
            "in rankPattern to 128 or less, or initLoraWeights to Default or Gaussian",
            ".rankPattern",
        ),
        cel(
            INPUTS_OF_LAYERS,
            "first values from the rows are of adapters on linear layers: remove targetExperts, or set "
            "initLoraWeights to Default or Gaussian",
            ".initLoraWeights",
        ),
        *(
            cel(
                rule,
                f"a pattern repeats no group and has at most four repetitions (*, + or {{}}): simplify the key in "
                f"tuning.lora.{field}, or write several keys",
                f".{field}",
            )
            for field, rule in BOUNDED.items()
        ),
        cel(
            EXPERTS_OF_ONE_RANK,
            "an adapter on experts has one rank and one alpha: remove tuning.lora.rankPattern and alphaPattern, or "
            "set targetExperts false",
            ".targetExperts",
        ),
        cel(
            PLAIN_ON_SHARDS,
            "a base that is shared out has plain adapters on linear layers: remove useDora, targetExperts, "
            "modulesToSave and initLoraWeights, or tuning.lora.shardBase",
            ".shardBase",
        ),
    )

    rank: Rank | None = None
    """Rank of the adapter matrices (PEFT's `r`). Default: 16, the highest that inference servers accept by default."""
    alpha: Alpha | None = None
    """Scaling of the adapter (PEFT's `lora_alpha`). Default: 32."""
    rank_pattern: Annotated[dict[ModulePattern, Rank], PATTERNS] | None = None
    """Ranks of single modules instead of `rank` (PEFT's `rank_pattern`). A key is a regular expression (Python syntax)
    for the end of a module's name, from a dot on: `down_proj`, or `layers\\.[01]\\.mlp\\..*`. Refused if it matches
    no module with an adapter, or if two keys give one module different ranks. Default: none."""
    alpha_pattern: Annotated[dict[ModulePattern, Alpha], PATTERNS] | None = None
    """Scalings of single modules instead of `alpha` (PEFT's `alpha_pattern`), with keys as in `rankPattern`. A module
    is scaled by its own alpha over its own rank. Default: none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout on the adapter's input (PEFT's `lora_dropout`). Objectives DPO, KTO, RLHF and Distillation, and an
    adapter on experts, train without dropout, and refuse any other value than 0. Default: {dropout}; 0 with
    `useDora`."""
    target_modules: Modules | None = None
    """Modules that get an adapter, by the end of their name, for example `[q_proj, v_proj]`. A name that the model does
    not have is refused. The output head gets none: `modulesToSave` trains it in full. Default: every linear layer but
    the output head."""
    target_experts: Switch = None
    """Also put an adapter on the experts of a mixture, a pair of matrices for each expert; `dropout` is 0 then. Refused
    for a model without experts. Default: false."""
    exclude_modules: Modules | None = None
    """Modules that get no adapter although `targetModules` or its default names them, by the end of their name, for
    example `[layers.0.self_attn.q_proj]`. One that excludes nothing is refused. Default: none."""
    modules_to_save: Modules | None = None
    """Modules trained in full next to the adapter and stored with it (PEFT's `modules_to_save`), by the end of their
    name: embeddings, output head, norms, or linear layers that have no adapter, for example `[embed_tokens, lm_head]`.
    Tied embeddings are trained as the one tensor that they are, whichever is named. vLLM does not serve such an
    adapter; set `output.merge` to serve the result. Default: none."""
    use_rslora: bool | None = None
    """Scale by `alpha / sqrt(rank)` instead of `alpha / rank`. Default: false."""
    use_dora: Switch = None
    """Also train the magnitude of each output (DoRA): slower, and vLLM does not serve such an adapter; set
    `output.merge` to serve the result. Default: false."""
    init_lora_weights: InitLoraWeights | None = None
    """First values of a new adapter, none of which changes an answer. `Default`: Kaiming-uniform A, B = 0. `Gaussian`:
    normal A with standard deviation `1 / rank`, B = 0. `PiSSA`: the largest singular vectors of each weight. `OLoRA`:
    its QR decomposition; both need method `LoRA`, and publish an adapter of twice the rank. `EVA`: A has the principal
    directions of the layer's inputs on the training rows, B = 0; not on experts. Default: `Default`."""
    lora_plus_lr_ratio: Annotated[float, Field(ge=1, le=1000)] | None = None
    """Learning rate of the factors B, as a multiple of that of the factors A, which is `learningRate` (LoRA+); 16 is
    usual. Default: 1."""
    shard_base: Switch = None
    """Share the frozen base out over the job's GPUs: each holds a part of every layer and gathers one layer at a time,
    for models that do not fit one GPU in 16 bits, or with method `QLoRA` in 4 bits. Needs several GPUs. Default: false,
    each GPU holds the whole base."""


class Quantization(Block):
    """Quantisation of the frozen base under QLoRA."""

    double_quant: bool | None = None
    """Quantise the quantisation constants too, which saves 0.4 bit per weight. Default: true."""


class InitialAdapter(Block):
    """An adapter to continue from."""

    model_config = with_rule(
        "has(self.uri) != has(self.fromParent)",
        "give the adapter either by uri or by fromParent: set one of the two",
        ".uri",
    )

    uri: ModelUri | None = None
    """Folder of the adapter as PEFT saves it, `s3://bucket/path/adapter`, `pvc://claim/path` or `hf://owner/name`.
    Exclusive with `fromParent`. Default: the parent's."""
    from_parent: Literal[True] | None = None
    """Continue from the adapter that `lineage.parentRef` published; the only value is true.
    Exclusive with `uri`. Default: absent."""


BUDGET_IN_BYTES = "!has(self.vramBudget) || !quantity(string(self.vramBudget)).isLessThan(quantity('1Mi'))"


class Tuning(Block):
    """How the model is tuned."""

    model_config = with_rules(
        cel(
            "self.method != 'Full' || !has(self.lora)",
            "lora has no effect with method Full: remove tuning.lora, or set method to QLoRA or LoRA",
            ".lora",
        ),
        cel(
            "self.method in ['QLoRA', 'Auto'] || !has(self.quantization)",
            "quantization needs method QLoRA or Auto: remove tuning.quantization, or change tuning.method",
            ".quantization",
        ),
        cel(
            "self.method != 'Full' || !has(self.initialAdapter)",
            "method Full trains no adapter: set method to QLoRA or LoRA, or remove tuning.initialAdapter",
            ".initialAdapter",
        ),
        cel(
            START_WITH_LORA,
            "first values from the weights need them in 16 bits: set tuning.method to LoRA, or "
            "tuning.lora.initLoraWeights to Default or Gaussian",
            ".lora.initLoraWeights",
        ),
        cel(
            START_OF_A_NEW_ADAPTER,
            "an adapter that is continued has its values: remove tuning.lora.initLoraWeights",
            ".lora.initLoraWeights",
        ),
        cel(
            BUDGET_IN_BYTES,
            "vramBudget below 1Mi: without a unit it is in bytes: write 24Gi in place of 24, for example",
            ".vramBudget",
        ),
    )

    method: Method = Method.AUTO
    """`QLoRA`: a 4-bit NF4 base with a low-rank adapter. `LoRA`: a 16-bit base with one. `Full`: every weight. `Auto`
    is QLoRA, or Full if `vramBudget` is given and the estimate fits it. Default: `Auto`."""
    vram_budget: Quantity | None = None
    """Maximum GPU memory for training, per GPU, for example `80Gi`. A job with a higher estimate fails before it
    requests a GPU, and method `Auto` chooses by it. Default: none; no job is refused as too large."""
    initial_adapter: InitialAdapter | None = None
    """Adapter to continue from, for example that of supervised tuning before DPO; not with method `Full`.
    Default: a new adapter."""
    lora: Lora | None = None
    """Settings of the low-rank adapter; not with method `Full`."""
    quantization: Quantization | None = None
    """Settings of the quantised base; only with method `QLoRA` or `Auto`."""
