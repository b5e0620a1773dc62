"""DeepSpeed as this platform uses it: its config as data, and the engine around a module.

DeepSpeed shards (ZeRO 0 … 3) and reduces gradients; optimizer, learning rate, objective and checkpoints are ours, so
that nothing about them is decided by its defaults. What is sharded is read and written in shards.py.
Leaves out: offloading, fp16, its data loader, scheduler, checkpoints and launcher.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# No print every n steps: progress is reported by the driver.
_NEVER = 1 << 60


def deepspeed_config(zero_stage: int, bf16: bool, max_grad_norm: float) -> dict[str, Any]:
    """Returns DeepSpeed's config.

    Args:
        zero_stage: 0 replicates everything, 1 shards the optimizer, 2 gradients too, 3 weights too.
        bf16: Matrix products in bf16; weights, gradients and optimizer state stay fp32.
        max_grad_norm: Used from stage 1 on. At stage 0 the loop clips, since DeepSpeed would not tell the norm.
    """
    return {
        # Batches are composed by the plan; these two only have to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm if zero_stage else 0.0,
        "zero_optimization": {"stage": zero_stage},
        # An empty list: gradients travel in fp32, or losses would depend on the number of workers.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": _NEVER,
    }


def new_engine(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], tied: Sequence[nn.Parameter]
) -> Any:
    """Wraps a module; torch.distributed must be initialised.

    Args:
        module: Whose forward pass computes the loss or what it needs.
        optimizer: Over the module's parameters.
        config: See `deepspeed_config`.
        tied: Parameters that the module's own forward pass uses besides the submodule that owns them; ZeRO-3 would
            otherwise take them away again once the owner has run.

    Returns:
        A `DeepSpeedEngine`.
    """
    # The venv's ninja, should an op of DeepSpeed be compiled: a job's PATH need not have the venv in it.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    # Where the module is, not what the machine has: `use_gpu: false` trains on the CPU beside a GPU.
    os.environ["DS_ACCELERATOR"] = next(module.parameters()).device.type
    import deepspeed

    # On a CPU DeepSpeed compiles an all-reduce over shared memory when it starts (30 to 95 s here), under a lock
    # that a killed run leaves behind and the next waits for without end. Only its inference engine calls that op.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    if config["zero_optimization"]["stage"] == 3:
        for parameter in tied:
            deepspeed.zero.register_external_parameter(module, parameter)
        _add_up(engine)
    return engine


def _add_up(engine: Any) -> None:
    """Lets each backward pass at ZeRO-3 add to the gradients of the last, whether a forward pass lies between or not.

    DeepSpeed 0.19.8 ends a pass's accounting in the next forward pass; a backward pass that follows another directly
    takes itself for a part of it and overwrites its gradients.
    """
    backward = engine.backward

    def adding(loss: torch.Tensor) -> torch.Tensor:
        engine.optimizer.clear_backward_seen_flag()
        return backward(loss)

    engine.backward = adding


@contextlib.contextmanager
def whole_weights(module: nn.Module, zero_stage: int) -> Iterator[None]:
    """Within the block the module's weights are whole on every rank; only ZeRO-3 has to gather them."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


def link_states(engine: Any) -> None:
    """Tells every parameter at ZeRO 1 and 2 where in the flat slices its optimizer state lies.

    DeepSpeed does so once, behind the step of the *first* parameter group (0.19.8), when the others have no state yet:
    theirs would be "not found in optimizer state fragment" for ever.
    """
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def whole_state(parameter: nn.Parameter, key: str) -> torch.Tensor:
    """Returns a parameter's whole optimizer state from ZeRO 1 on; all ranks call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, key)


def set_state(parameter: nn.Parameter, value: torch.Tensor, key: str) -> None:
    """Sets a parameter's optimizer state from ZeRO 1 on; `value` is whole, at ZeRO-3 this rank's slice."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    (safe_set_local_optimizer_state if hasattr(parameter, "ds_tensor") else safe_set_full_optimizer_state)(
        parameter, value, key
    )
