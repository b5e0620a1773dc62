"""DeepSpeed runs where the module is, whatever else the machine has."""

import os
import subprocess
import sys

ON_A_GPU_MACHINE = """
import tempfile
import torch
from torch import distributed, nn
torch.cuda.is_available = lambda: True  # as beside a GPU that the run leaves alone
from chuxin.training.deepspeed import deepspeed_config, new_engine
store = distributed.FileStore(tempfile.mktemp(), 1)
distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
module = nn.Linear(3, 3)
engine = new_engine(module, torch.optim.AdamW(module.parameters()), deepspeed_config(1, False, 1.0), ())
engine.backward(engine(torch.ones(1, 3)).sum())
engine.step()
from deepspeed.accelerator import get_accelerator
print("ran on", get_accelerator()._name, engine.device)
distributed.destroy_process_group()
"""


def test_a_module_on_the_cpu_is_trained_on_the_cpu() -> None:
    environment = {**os.environ, "PYTHONPATH": "platform", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                   "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # fmt: skip
    found = subprocess.run([sys.executable, "-c", ON_A_GPU_MACHINE], env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "ran on cpu cpu" in found.stdout, found.stderr[-3000:]
