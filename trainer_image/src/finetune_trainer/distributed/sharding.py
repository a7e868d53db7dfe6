"""Method Full on several processes: each holds a share of every weight, gradient and moment, and borrows the rest.

By torch's own `fully_shard`: the library's switch for it trains without sharding on CPUs, and says nothing.
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
"""A process may hold so many times its even share, for tensors that do not divide evenly."""
SMALL = 1 << 16
"""Bytes of parameters below which uneven shares say nothing."""


def shard(model: PreTrainedModel, world: World, device: torch.device) -> None:
    """Shares the model out, layer by layer; refuses to go on where it is not shared out in truth."""
    mesh = init_device_mesh(device.type, (world.size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # The library's words for a model that owns its placement: it must neither wrap it nor move it.
    model._is_distributed_loading_by_transformers = True
    model._is_fsdp_managed_module = True
    require_sharded(model, world.size)


def require_sharded(model: torch.nn.Module, size: int) -> None:
    """Raises unless layers are wrapped and this process holds about one part in `size` of the weights."""
    wrapped = sum(isinstance(module, FSDPModule) for module in model.modules())
    whole = sum(one.numel() * one.element_size() for one in model.parameters())
    mine = sum(local(one).numel() * one.element_size() for one in model.parameters())
    told = f"{wrapped} modules are wrapped, and this process holds {mine:,} of {whole:,} bytes of weights"
    logger.info("method Full on %d processes: %s", size, told)
    if wrapped < 2 or mine > whole / size * LARGEST_SHARE + SMALL:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"the model is not shared out between {size} processes: {told}")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model's weights are shared out."""
    return isinstance(model, FSDPModule)


def give_back(model: torch.nn.Module) -> None:
    """Lets go of what was borrowed for a forward pass: what stands in the model is then this process's shares."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share of the tensor; of one that is not shared out, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on the CPU, in every process, which all must ask for it."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def fill(parameter: torch.Tensor, saved: torch.Tensor | None) -> None:
    """Gives every process its share of a tensor that the first one has read."""
    if not isinstance(parameter, DTensor):
        if saved is None:
            raise KeyError("a trained weight is not in the file")
        parameter.copy_(saved)
        return
    whole = torch.empty(parameter.shape, dtype=parameter.dtype) if saved is None else saved.to(parameter.dtype)
    shared = distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)
    parameter.to_local().copy_(shared.to_local())


def gathered_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state as one process alone would have it, on the CPU; all must ask for it."""
    state = optimiser.state_dict()
    moments = {
        at: {name: gathered(value) if isinstance(value, DTensor) else value for name, value in one.items()}
        for at, one in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def load_state(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes this process's shares of a state that is whole, as `gathered_state` gives it."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments = {
        at: {name: _share(value, parameters[at]) for name, value in one.items()} for at, one in saved["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})


def _share(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder's layers, by the library's own list of what must not be torn apart."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        told = f"{type(model).__name__} does not name its layers: use tuning.method LoRA, or one GPU"
        raise TrainerError(ExitCode.INVALID_CONFIG, f"the model cannot be shared out between processes: {told}")
    return layers


def require_same_gradients(model: torch.nn.Module, world: World) -> None:
    """Raises where the processes have different gradients after they should have been averaged."""
    norms = [one.grad.double().norm() for one in model.parameters() if one.grad is not None and one.requires_grad]
    mine = torch.stack([norm.cpu() for norm in norms]) if norms else torch.zeros(1, dtype=torch.float64)
    found = world.gather(mine)
    if not all(torch.equal(one, found[0]) for one in found):
        raise TrainerError(ExitCode.INTERNAL_ERROR, "the processes have different gradients at the first step")
