"""A model on several processes: each holds a shard of every weight that was loaded, and gathers the rest.

With method Full gradients and moments are sharded too. An adapter that is put on a sharded base is whole in every
process: transformers averages its gradients.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.world import World
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.peft_base import find_base

logger = logging.getLogger(__name__)

LARGEST_SHARE = 1.25
"""A process may hold this multiple of its even share, because not all tensors divide evenly."""
STEPS = "step"
"""The only entry of an optimiser's state of a weight that is a number; the others have the weight's shape."""
ROUNDING = 1e-6
"""Relative difference of two norms of the same gradient."""
SMALL = 1 << 16
"""Bytes of parameters that are allowed on top: the shares of small tensors are uneven."""


def sharding_options(skeleton: PreTrainedModel, world: World, compute: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` with which this process reads its shard of every weight alone.

    `skeleton` is the model on the meta device. With BF16, layers are gathered in BF16 and gradients are reduced in
    FP32; the shards are in the format that is loaded. FP16 has no such switch: autocast casts what was gathered.
    """
    plan = {re.sub(r"\.\d+(?=\.|$)", ".*", name): "free_full_weight" for name, _ in decoder_layers(skeleton)}
    return {
        "distributed_config": DistributedConfig(
            fsdp_size=world.size, fsdp_plan=plan, fsdp_mixed_precision=compute is torch.bfloat16
        )
    }


def shard_base(base: PreTrainedModel, size: int, shares: Sequence[tuple[torch.nn.Module, str, torch.Size]]) -> None:
    """Shard every weight of the model that is frozen, on the device on which it is.

    Of `shares`, given as a module, the weight's name in it and the shape of the whole, this process has its rows
    already; the other weights are whole.
    """
    adapter = {one for one in base.parameters() if one.requires_grad}
    mesh = init_device_mesh(base.device.type, (size,))
    layers = decoder_layers(base)
    rows = {(module, name): getattr(module, name).data for module, name, _ in shares}
    for module, name, shape in shares:
        whole = torch.empty(shape, dtype=rows[module, name].dtype, device="meta")
        setattr(module, name, torch.nn.Parameter(whole, requires_grad=False))
    for module in [*(layer for _, layer in layers), base]:
        fully_shard(module, mesh=mesh, ignored_params=adapter)
    for (module, name), own in rows.items():
        like = getattr(module, name)
        options = {"run_check": False, "shape": like.shape, "stride": like.stride()}
        shard = DTensor.from_local(own, mesh, like.placements, **options)
        setattr(module, name, torch.nn.Parameter(shard, requires_grad=False))
    # What the library sets on a model that it sharded itself, and reads in Trainer and generate().
    base._is_distributed_loading_by_transformers = base._is_fsdp_managed_module = True
    base.config.distributed_config = DistributedConfig(fsdp_size=size)
    require_sharded(base, size)


def make_trained_whole(model: torch.nn.Module) -> None:
    """Give each process all of the trained weights that were copied from a shard, such as a score; a collective."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.requires_grad and isinstance(weight, DTensor):
                setattr(module, name, torch.nn.Parameter(weight.full_tensor()))


def join_tied_shards(model: PreTrainedModel) -> None:
    """Give a weight that two FSDP groups have, such as a tied embedding, one shard in this process.

    FSDP pads a shard that is shorter than the others in each group by itself, when the model is first called: one group
    would then compute with a copy that neither the optimiser nor a checkpoint changes.
    """
    owners: dict[DTensor, list[Any]] = {}
    for module in model.modules():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        for one in group.fsdp_params if group else ():
            owners.setdefault(getattr(one._module_info.module, one._module_info.param_name), []).append(one)
    for weight, parts in owners.items():
        own, padded = local_shard(weight.detach()), parts[0].padded_sharded_param_size
        if len(parts) == 1 or own.shape == padded:
            continue
        whole = own.new_zeros(padded)
        whole[: len(own)] = own
        weight._local_tensor = whole[: len(own)]
        for one in parts:
            one._sharded_param_data = whole.view(-1)


def own_rows(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Return a copy of this process's rows of the tensor, as it is sharded; none if there are fewer rows than
    processes."""
    rows = tensor.chunk(world.size)
    return (rows[world.rank] if world.rank < len(rows) else tensor[:0]).clone()


def require_sharded(model: torch.nn.Module, size: int) -> None:
    """Raise unless every layer is wrapped and this process holds about one part in `size` of the weights, those of an
    adapter excepted, which is whole."""
    layers = [module for _, module in decoder_layers(model)]
    wrapped = sum(isinstance(module, FSDPModule) for module in layers)
    weights = [one for one in model.parameters() if isinstance(one, DTensor) or not one.requires_grad]
    whole = sum(one.numel() * one.element_size() for one in weights)
    held = sum(local_shard(one).numel() * one.element_size() for one in weights)
    found = (
        f"{wrapped} of {len(layers)} layers are wrapped, and this process holds {held:,} of {whole:,} bytes of weights"
    )
    logger.info("the weights are sharded over %d processes: %s", size, found)
    if not is_sharded(model) or wrapped < len(layers) or held > whole / size * LARGEST_SHARE + SMALL:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the model is not sharded over {size} processes: {found}")


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the model's weights are sharded, so that a forward pass is a collective."""
    return isinstance(find_base(model), FSDPModule)


def trains_shards(model: torch.nn.Module) -> bool:
    """Return whether the trained weights are sharded; an adapter on a sharded base is whole in every process."""
    return isinstance(model, FSDPModule)


def reshard(model: torch.nn.Module) -> None:
    """Free the weights gathered for a forward pass: the model then holds this process's shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of the tensor, or the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on the CPU, in every process; a collective."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def load_parameter(parameter: torch.Tensor, saved: torch.Tensor | None) -> None:
    """Copy the saved tensor into the parameter. If it is sharded, only the first process needs to have read it."""
    if not isinstance(parameter, DTensor):
        if saved is None:
            raise KeyError("a trained weight is not in the file")
        parameter.copy_(saved)
        return
    whole = torch.empty(parameter.shape, dtype=parameter.dtype) if saved is None else saved.to(parameter.dtype)
    sharded = distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.to_local().copy_(sharded.to_local())


def save_shards(model: torch.nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Write this process's shards of the optimiser's state to the folder as safetensors; a collective."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    save(_named_state(model, optimiser), storage_writer=writer)


def load_shards(model: torch.nn.Module, optimiser: torch.optim.Optimizer, folder: Path) -> None:
    """Load this process's part of a state that any number of processes wrote with `save_shards`; a collective."""
    reader = HuggingFaceStorageReader(str(folder))
    parameters = dict(model.named_parameters())
    for path, saved in reader.read_metadata().state_dict_metadata.items():
        if isinstance(saved, TensorStorageMetadata):  # safetensors have nothing else
            name, _, key = path.rpartition("/")
            dtype = saved.properties.dtype
            optimiser.state[parameters[name]][key] = (
                torch.zeros((), dtype=dtype) if key == STEPS else torch.zeros_like(parameters[name], dtype=dtype)
            )
    with torch.no_grad():
        load(_named_state(model, optimiser), storage_reader=reader, no_dist=not trains_shards(model))
    optimiser.load_state_dict(optimiser.state_dict())  # puts the numbers of steps on the device that it needs


def _named_state(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's tensors by the name of their weight; numbers get a dimension, which the format needs."""
    return {
        f"{name}/{key}": value if value.dim() else value.view(1)
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def load_state(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load this process's shards of an unsharded state, as one process saves it."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        at: {name: _shard_value(value, parameters[at]) for name, value in one.items()}
        for at, one in saved["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})


def _shard_value(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def decoder_layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Return the layers, by name: the modules that the library must not split, without those inside of another one.

    Raises InvalidConfig for a model that has none, or whose layers share weights.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers: list[tuple[str, torch.nn.Module]] = []
    for name, one in model.named_modules():
        is_inside = bool(layers) and name.startswith(f"{layers[-1][0]}.")
        if not is_inside and kinds & {kind.__name__ for kind in type(one).mro()}:
            layers.append((name, one))
    problem = "" if layers else "does not declare its layers"
    owners: dict[int, str] = {}
    for name, layer in layers:
        if any(owners.setdefault(id(one), name) != name for one in layer.parameters()):
            problem = f"has weights that several layers share, for example {name}"
    if problem:
        fix = "use one GPU, or an adapter without tuning.lora.shardBase and distillation.shardTeacher"
        raise InvalidConfig(f"the model cannot be sharded over processes: {type(model).__name__} {problem}: {fix}")
    return layers


def require_same_gradients(model: torch.nn.Module, world: World) -> None:
    """Raise if the gradients differ between processes after they were averaged; of shards, each has its own.

    Loss scaling may make the first ones of FP16 too large, so that they are NaN everywhere.
    """
    if world.size == 1 or trains_shards(model):
        return
    norms = [one.grad.double().norm() for one in model.parameters() if one.grad is not None and one.requires_grad]
    own = torch.stack([norm.cpu() for norm in norms]) if norms else torch.zeros(1, dtype=torch.float64)
    found = world.gather(own)
    # The same values have another sum on another kind of GPU.
    if not all(torch.allclose(one, found[0], rtol=ROUNDING, atol=0.0, equal_nan=True) for one in found):
        raise TrainerError(ExitCode.INTERNAL_ERROR, "the gradients of the processes differ at the first step")
