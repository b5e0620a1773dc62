"""Settings that every test runs under, also where pytest is called without make.

They are set before the first import of torch, transformers or ray, and workers inherit them.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings  # noqa: E402  (after the environment is set)

# A time limit on an example fails on a loaded machine: 322 ms were seen where 0.4 ms are usual.
settings.register_profile("chuxin", deadline=None)
settings.load_profile("chuxin")
