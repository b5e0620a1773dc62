"""A checkpoint's linear layers laid out as GPTQ, AWQ or FP8 files are, and the same weights multiplied out.

Layouts as vLLM reads them. Four bits: GPTQ packs eight input rows into an int32 and stores each zero point less one;
AWQ packs eight output columns, in the order 0, 2, 4, 6, 1, 3, 5, 7. FP8: compressed-tensors' float-quantized, e4m3
weights with a scale an output channel, activations with one a token, taken while they pass: of vLLM's FP8 layouts
the one that its CPU build computes without AMX. The rounding is plain (to the nearest), which no method's own is:
here the reading is tested, not the quality.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GROUP = 64
"""Input features that share a scale of four-bit weights."""
_ZERO = 8
_E4M3_MOST = 448
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
_LAYOUTS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
             "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "fp8": {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "ignore": ["lm_head"], "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": _FP8 | {"strategy": "channel", "dynamic": False},
                "input_activations": _FP8 | {"strategy": "token", "dynamic": True}}}},
}  # fmt: skip


def save(source: str, layout: str, target: Path, plain: Path) -> None:
    """Writes the checkpoint in "gptq", "awq" or "fp8" layout (bf16 around it) to `target`, and the very weights that
    stand there, multiplied out in fp32, to `plain`."""
    tensors: dict[str, torch.Tensor] = {}
    multiplied: dict[str, torch.Tensor] = {}
    for name, weight in load_file(f"{source}/model.safetensors").items():
        multiplied[name] = weight.float()
        if name.endswith("proj.weight"):
            stored, multiplied[name] = (_fp8 if layout == "fp8" else _four_bits)(weight.float(), layout)
            tensors |= {name.removesuffix("weight") + part: tensor for part, tensor in stored.items()}
        else:
            tensors[name] = weight
    _write(source, target, tensors, {"dtype": "bfloat16", "quantization_config": _LAYOUTS[layout]})
    _write(source, plain, multiplied, {"dtype": "float32"})


def _write(source: str, target: Path, tensors: dict[str, torch.Tensor], settings: dict) -> None:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _fp8(weight: torch.Tensor, layout: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scale = (weight.abs().amax(-1, keepdim=True) / _E4M3_MOST).clamp(min=1e-12)  # rows of zeros
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def _four_bits(weight: torch.Tensor, layout: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    out, width = weight.shape
    grouped = weight.view(out, width // GROUP, GROUP)
    scales = (grouped.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-4).half()
    levels = (grouped / scales.float()).round().clamp(-_ZERO, 7)
    stored = levels.view(out, width).T.long() + _ZERO  # [in, out], 0 to 15
    zeros = torch.full((width // GROUP, out), _ZERO - (layout == "gptq"))
    tensors = {"scales": scales.squeeze(-1).T.contiguous()}
    if layout == "gptq":
        tensors |= {"qweight": packed(stored.T).T.contiguous(), "qzeros": packed(zeros)}
        tensors["g_idx"] = (torch.arange(width) // GROUP).int()
    else:
        order = torch.arange(out).view(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()
        tensors |= {"qweight": packed(stored[:, order]), "qzeros": packed(zeros)}
    return tensors, (levels * scales.float()).view(out, width)


def packed(values: torch.Tensor) -> torch.Tensor:
    """Packs eight numbers of 0 to 15 along the last axis into one int32, the first lowest."""
    shifted = values.view(*values.shape[:-1], -1, 8) << torch.arange(0, 32, 4)
    return shifted.sum(-1).to(torch.int32)  # the 32nd bit becomes the sign
