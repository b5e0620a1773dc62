"""A checkpoint's linear layers in four bits, laid out as GPTQ or AWQ files are, and the same weights multiplied out.

Layouts as vLLM reads them: GPTQ packs eight input rows into an int32 and stores each zero point less one; AWQ packs
eight output columns, in the order 0, 2, 4, 6, 1, 3, 5, 7. The rounding is plain (to the nearest), which neither
method's own is: here the reading is tested, not the quality.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 64
"""Input features that share a scale."""
_ZERO = 8
_LAYOUTS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
             "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}  # fmt: skip


def save(source: str, target: Path, layout: str | None) -> None:
    """Writes a copy of the checkpoint in "gptq" or "awq" layout (bf16 around it), or multiplied out in fp32 (None)."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config |= {"dtype": "bfloat16", "quantization_config": _LAYOUTS[layout]} if layout else {"dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(f"{source}/model.safetensors").items():
        if not name.endswith("proj.weight"):
            tensors[name] = weight if layout else weight.float()
            continue
        out, width = weight.shape
        grouped = weight.float().view(out, width // GROUP, GROUP)
        scales = (grouped.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-4).half()
        levels = (grouped / scales.float()).round().clamp(-_ZERO, 7)
        if layout is None:
            tensors[name] = (levels * scales.float()).view(out, width)
            continue
        stored = levels.view(out, width).T.long() + _ZERO  # [in, out], 0 to 15
        zeros = torch.full((width // GROUP, out), _ZERO - (layout == "gptq"))
        stem = name.removesuffix("weight")
        if layout == "gptq":
            tensors[f"{stem}qweight"], tensors[f"{stem}qzeros"] = packed(stored.T).T.contiguous(), packed(zeros)
            tensors[f"{stem}g_idx"] = (torch.arange(width) // GROUP).int()
        else:
            order = torch.arange(out).view(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()
            tensors[f"{stem}qweight"], tensors[f"{stem}qzeros"] = packed(stored[:, order]), packed(zeros)
        tensors[f"{stem}scales"] = scales.squeeze(-1).T.contiguous()
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def packed(values: torch.Tensor) -> torch.Tensor:
    """Packs eight numbers of 0 to 15 along the last axis into one int32, the first lowest."""
    shifted = values.view(*values.shape[:-1], -1, 8) << torch.arange(0, 32, 4)
    return shifted.sum(-1).to(torch.int32)  # the 32nd bit becomes the sign
