"""Method Full on several processes: each holds a shard of every weight, gradient and moment, and gathers the rest.

It uses torch's `fully_shard`, because the switch in transformers trains without sharding on CPUs, without an error.
"""

import logging
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.world import World
from finetune_trainer.errors import TrainerError

logger = logging.getLogger(__name__)

LARGEST_SHARE = 1.25
"""A process may hold this multiple of its even share, because not all tensors divide evenly."""
SMALL = 1 << 16
"""Bytes of parameters that are allowed on top: the shares of small tensors are uneven."""


def shard(model: PreTrainedModel, world: World, device: torch.device) -> None:
    """Shard the model, layer by layer; raise if it is not really sharded."""
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # With these attributes the library neither wraps nor moves the model.
    model._is_distributed_loading_by_transformers = True
    model._is_fsdp_managed_module = True
    require_sharded(model, world.size)


def require_sharded(model: torch.nn.Module, size: int) -> None:
    """Raise unless layers are wrapped and this process holds about one part in `size` of the weights."""
    wrapped = sum(isinstance(module, FSDPModule) for module in model.modules())
    whole = sum(one.numel() * one.element_size() for one in model.parameters())
    held = sum(local_shard(one).numel() * one.element_size() for one in model.parameters())
    found = f"{wrapped} modules are wrapped, and this process holds {held:,} of {whole:,} bytes of weights"
    logger.info("method Full on %d processes: %s", size, found)
    if wrapped < 2 or held > whole / size * LARGEST_SHARE + SMALL:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the model is not sharded over {size} processes: {found}")


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the model's weights are sharded."""
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


def full_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's unsharded state on the CPU; a collective."""
    state = optimiser.state_dict()
    moments = {
        at: {name: full_tensor(value) if isinstance(value, DTensor) else value for name, value in one.items()}
        for at, one in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def load_state(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load this process's shards of an unsharded state, as `full_state` returns it."""
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


def _layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the decoder's layers: the modules that the library must not split."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        problem = f"{type(model).__name__} does not declare its layers: use tuning.method LoRA, or one GPU"
        raise TrainerError(ExitCode.INVALID_CONFIG, f"the model cannot be sharded over processes: {problem}")
    return layers


def require_same_gradients(model: torch.nn.Module, world: World) -> None:
    """Raise if the gradients differ between processes after they were averaged."""
    norms = [one.grad.double().norm() for one in model.parameters() if one.grad is not None and one.requires_grad]
    own = torch.stack([norm.cpu() for norm in norms]) if norms else torch.zeros(1, dtype=torch.float64)
    found = world.gather(own)
    if not all(torch.equal(one, found[0]) for one in found):
        raise TrainerError(ExitCode.INTERNAL_ERROR, "the gradients of the processes differ at the first step")
