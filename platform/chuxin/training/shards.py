"""Weights and optimizer state of an engine, whole and by name, whatever ZeRO stage holds them.

    ZeRO 0     parameters are whole, torch's optimizer keeps a state for each
    ZeRO 1, 2  parameters are whole; the optimizer sees one flat slice a parameter group, of which a parameter owns a
               fragment on one rank or on several neighbours
    ZeRO 3     `parameter.ds_tensor` is this rank's slice of every parameter, the last one padded; the parameter
               itself is empty until a forward pass gathers it

Traps of DeepSpeed 0.19: a flat slice has no state before the first step, so there is nothing to set: it is made here.
Its `safe_set_full_…` fail at ZeRO 3 where a parameter's size is no multiple of the number of ranks, so slices are
cut and padded here. It holds parameters below 100,000 elements whole on every rank between steps: whoever changes a
slice has to gather them again.
Leaves out: files (checkpoint.py). All functions are called by all ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from chuxin.training.deepspeed import link_states, set_state, whole_state
from chuxin.training.step import rank, world_size

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter, besides the number of its steps."""
Read = Callable[[str, str], torch.Tensor | None]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def local(parameter: nn.Parameter) -> torch.Tensor:
    """Returns what this rank holds of a parameter: all of it, or at ZeRO 3 its slice; not a copy."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data


def whole(held: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Joins the ranks' parts of a tensor that is held as `local(parameter)` is."""
    if not hasattr(parameter, "ds_tensor"):
        return held
    slices = [torch.empty_like(held) for _ in range(world_size())]
    distributed.all_gather(slices, held.contiguous())
    return torch.cat(slices)[: parameter.ds_numel].view(parameter.ds_shape)


def part(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Cuts this rank's part out of a whole tensor: what `whole` joins."""
    if not hasattr(parameter, "ds_tensor"):
        return tensor.to(parameter.device)
    length = parameter.ds_tensor.numel()
    flat = tensor.flatten()[rank() * length :][:length]
    return functional.pad(flat, (0, length - flat.numel())).to(parameter.ds_tensor.device)


def optimizer_states(engine: Any, zero_stage: int) -> Iterator[tuple[str, nn.Parameter, dict[str, torch.Tensor]]]:
    """Yields each trained parameter with its whole moments and number of steps; {} where it took none yet."""
    state = engine.optimizer.state if zero_stage == 0 else engine.basic_optimizer.state
    if zero_stage in (1, 2) and state:
        link_states(engine)
    for name, parameter in trained(engine.module).items():
        if zero_stage == 0:
            yield name, parameter, dict(state[parameter]) if parameter in state else {}
        elif state:
            step = next(iter(state.values()))["step"]
            yield name, parameter, {"step": step, **{key: whole_state(parameter, key) for key in MOMENTS}}
        else:
            yield name, parameter, {}


def set_optimizer_state(engine: Any, zero_stage: int, read: Read) -> None:
    """Gives a new engine the moments and steps of an earlier one.

    Args:
        engine: No step taken yet.
        zero_stage: Of this engine.
        read: A parameter's name and one of its keys → what `optimizer_states` gave, or None.
    """
    parameters = trained(engine.module)
    steps = {name: step for name in parameters if (step := read(name, "step")) is not None}
    if not steps:
        return
    if zero_stage == 0:
        for name, step in steps.items():
            parameter = parameters[name]
            moments = {key: read(name, key).to(parameter.device) for key in MOMENTS}
            engine.optimizer.state[parameter] = {"step": step, **moments}
        return
    sharded = engine.optimizer
    # A parameter without a gradient is skipped by torch's AdamW and has a gradient of 0 in a flat slice.
    step = max(steps.values())
    for flat in sharded.fp32_partitioned_groups_flat if zero_stage == 3 else sharded.single_partition_of_fp32_groups:
        zeros = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
        engine.basic_optimizer.state[flat] = {"step": step.clone(), **zeros}
    if zero_stage < 3:
        link_states(engine)
    for name in steps:
        for key in MOMENTS:
            value, parameter = read(name, key), parameters[name]
            set_state(parameter, part(value, parameter), key)


def refresh(module: nn.Module) -> None:
    """Gathers again what ZeRO 3 holds gathered, after `local` parts were changed."""
    held = [p for p in module.parameters() if hasattr(p, "ds_tensor") and p.ds_status.name == "AVAILABLE"]
    if held:
        held[0].partition(held, has_been_updated=False)
        held[0].all_gather(held)
