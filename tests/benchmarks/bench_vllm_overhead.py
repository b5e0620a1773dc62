"""Requests through our engines (Ray actor, answer store, parsing) against bare vLLM on the same prompts.

Both sides hold the same random Qwen2, started before the clock, and get all prompts at once: rich prompts with their
JSON schema, at temperature 0. `ratio` is our requests per second over vLLM's, by the CPU seconds of all processes
(this one, Ray's, both engines', of which one is idle); `wall` has it by the clock. Equal means: every answer is the
same text. An empty answer store is filled each round, so none of our answers comes from it.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "unit" / "synthesis"))
import random_llm  # noqa: E402  (the unit tests make the same kind of model)

SETTINGS = {
    "requests": 32, "passage_chars": 200, "max_tokens": 48, "layers": 14, "hidden": 640, "intermediate": 2560,
    "vocabulary": 32000, "dtype": "float32", "threads": 1, "seed": 3, "temperature": 0.0, "max_num_seqs": 32,
}  # fmt: skip
WORDS = "公司成立于北京上海手机产品用户学生医院政策城市历史文化河流气温会议研究结果方法数据病人药物价格市场"


def calls() -> list:
    import random

    from chuxin.synthesis.calls import writing
    from chuxin.synthesis.config import Sampling
    from chuxin.synthesis.render import Ask, describe, rich_schema

    rng = random.Random(SETTINGS["seed"])
    sampling = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.05, max_tokens=SETTINGS["max_tokens"])
    asks = describe([Ask("question", "easy", "short"), Ask("title", "hard", "long")])
    passages = ["".join(rng.choices(WORDS, k=SETTINGS["passage_chars"])) for _ in range(SETTINGS["requests"])]
    return [writing("rich", p, sampling, 0, rich_schema(2), count=2, asks=asks) for p in passages]


def tree_seconds() -> float:
    """CPU seconds of this process and all its descendants."""
    import psutil

    total, this = 0.0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def bare(folder: str):
    """vLLM's own offline engine with the settings that our actor gives its engine."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    engine = LLM(
        model=folder, dtype=SETTINGS["dtype"], max_model_len=1024, max_num_seqs=SETTINGS["max_num_seqs"], seed=0,
        enforce_eager=True, block_size=32, enable_prefix_caching=True,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )  # fmt: skip

    def side() -> list[str]:
        engine.reset_prefix_cache()
        given = calls()
        parameters = [
            SamplingParams(temperature=0.0, top_p=c.top_p, repetition_penalty=c.repetition_penalty,
                           max_tokens=c.max_tokens, structured_outputs=StructuredOutputsParams(json=c.schema))
            for c in given
        ]  # fmt: skip
        outputs = engine.chat([c.messages for c in given], parameters, use_tqdm=False)
        return [o.outputs[0].text for o in outputs]

    return side


def through_ours(pool, execution):
    """Our way of a partition: rows at work at once, every answer stored, read as JSON."""
    from chuxin.synthesis.parse import read_queries
    from chuxin.synthesis.work import Crew

    async def work(call, ask) -> str:
        answer = await ask(call)
        read_queries(answer.text, 2, answer.finish)
        return answer.text

    def failed(call, error: Exception) -> str:
        return f"failed: {error!r}"

    def side() -> list[str]:
        pool.reset_prefix_cache()
        with tempfile.TemporaryDirectory() as folder:
            crew = Crew(pool.client, None, "m", folder, execution)
            return crew.run(calls(), work, failed)[0]

    return side


def clocked(side) -> tuple[list[str], float, float]:
    cpu, wall = tree_seconds(), time.perf_counter()
    found = side()
    return found, tree_seconds() - cpu, time.perf_counter() - wall


def measure(rounds: int) -> dict:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": str(SETTINGS["threads"]), "HF_HUB_OFFLINE": "1",
                   "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    import ray

    from chuxin.synthesis.config import LLMConfig, LLMExecution
    from chuxin.synthesis.llm import LLMPool

    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: SETTINGS[name] for name in ("layers", "hidden", "intermediate", "vocabulary")}
        parameters = random_llm.save(folder, **sizes, texts=(WORDS, random_llm.TEXT))
        execution = LLMExecution(max_num_seqs=SETTINGS["max_num_seqs"], concurrency=SETTINGS["requests"])
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(HERE.parents[1] / "platform")}})  # fmt: skip
        config = LLMConfig(folder, dtype=SETTINGS["dtype"], max_model_len=1024)
        with LLMPool(folder, config, execution) as pool:
            sides = through_ours(pool, execution), bare(folder)
            first, second = sides[0](), sides[1]()
            cpu: tuple[list, list] = [], []
            wall: tuple[list, list] = [], []
            for turn in range(rounds):
                for place in (0, 1)[:: 1 if turn % 2 == 0 else -1]:
                    _, used, took = clocked(sides[place])
                    cpu[place].append(used)
                    wall[place].append(took)
        ray.shutdown()
    ratios, clock = ([b / a for a, b in zip(*times, strict=True)] for times in (cpu, wall))
    medians = [statistics.median(times) for times in (*cpu, *wall)]
    n = SETTINGS["requests"]
    return {
        "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
        "ours": n / medians[0], "theirs": n / medians[1], "unit": "requests per CPU second",
        "equal": first == second, "rounds": rounds, "settings": {**SETTINGS, "parameters": parameters},
        "wall": {"ratio": statistics.median(clock), "ours": n / medians[2], "theirs": n / medians[3],
                 "unit": "requests per second"},
    }  # fmt: skip
