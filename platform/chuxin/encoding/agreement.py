"""Do two readers of one model agree? Probe texts and the smallest cosine between their vectors.

The release stage compares the training checkpoint with FlagEmbedding and sentence-transformers, the serve
stage the endpoint with the release, each on `PROBES` in fp32. Leaves out: how the vectors are made.
"""

from __future__ import annotations

import numpy as np

from chuxin.errors import InputError

LEAST_COSINE = 0.9999

# Short and long, simplified and traditional, digits, Latin, rare characters, blanks, line breaks.
PROBES = (
    "茶",
    "如何更换自行车的内胎",
    "这座桥建成于哪一年?",
    "江南梅雨通常在六月中旬开始,七月上旬结束,期间空气潮湿,衣物容易发霉。",
    "臺灣的高鐵票可以在便利商店取嗎?",
    "血压 140/90 mmHg 算高吗,需要吃药吗",
    "The train to 杭州 leaves at 7:45 from platform 3.",
    "姓氏“㛃”和地名“𬇙水”属于生僻字,普通字体往往没有收录。",
    "  首行空两格。\n第二行写着:全角ABC与半角ABC应当相同。  ",
    "合同约定,承租人应当在每月五日前支付租金;逾期超过十五日的,出租人有权解除合同,并要求赔偿损失。" * 3,
    "昆虫的翅膀由外骨骼延伸而成,上面布满翅脉。蜻蜓能够分别控制四片翅膀,因此可以悬停,也可以突然转向。" * 20,
)


def require_agreement(first_NH: np.ndarray, second_NH: np.ndarray, who: str) -> float:
    """Returns the smallest cosine between vectors of the same texts.

    Args:
        first_NH: Vectors of the probes by the reader that is taken as right.
        second_NH: Vectors by the reader in question.
        who: Names the reader in question.

    Raises:
        InputError: The shapes differ, or a cosine is under `LEAST_COSINE` (or is not a number).
    """
    remedy = "Compare its config.json and tokenizer files with those of the training checkpoint"
    if first_NH.shape != second_NH.shape:
        raise InputError(who, f"gives vectors of shape {second_NH.shape}, not {first_NH.shape}", remedy)
    first, second = first_NH.astype(np.float64), second_NH.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines_N = (first * second).sum(axis=1) / norms
    worst = int(np.argmin(np.nan_to_num(cosines_N, nan=-1.0)))
    if not cosines_N[worst] >= LEAST_COSINE:
        problem = f"cosine {cosines_N[worst]:.6f} with the training checkpoint on {PROBES[worst][:20]!r}"
        raise InputError(who, problem, remedy)
    return float(cosines_N[worst])
