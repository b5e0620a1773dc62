"""Requests through our engines (Ray actor, answer store, parsing) against bare vLLM on the same prompts.

Both sides hold the same random Qwen2, started before the clock, and get all prompts at once: rich prompts with their
JSON schema, at temperature 0. They take turns on the same threads, and the one that waits is idle. `ratio` is our
requests per second over vLLM's, by the clock: what a caller waits for; `cpu` has it by the CPU seconds of all
processes. Equal means: every answer is the same text. An empty answer store is filled each round, so none of our
answers comes from it.

`ray_data` is the comparator: the same prompts through ray.data.llm's processor. Its engine lives as long as one dataset
and its rows come out when a block is whole, so its seconds are the longest that its engine stage took for a prompt of
a batch that holds them all, other prompts having gone before: without start-up, and without what its other stages and
Ray Data's tasks take. It runs after the others, with their engines gone.
"""

import json
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
    "requests": 32, "passage_chars": 200, "max_tokens": 24, "layers": 14, "hidden": 640, "intermediate": 2560,
    "vocabulary": 32000, "dtype": "float32", "threads": 1, "seed": 3, "temperature": 0.0, "max_num_seqs": 32,
}  # fmt: skip
WORDS = "公司成立于北京上海手机产品用户学生医院政策城市历史文化河流气温会议研究结果方法数据病人药物价格市场"


def calls(seed: int) -> list:
    import random

    from chuxin.synthesis.calls import writing
    from chuxin.synthesis.config import Sampling
    from chuxin.synthesis.render import Ask, describe, rich_schema

    rng = random.Random(seed)
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


def engine_options() -> dict:
    """What our actor gives its engine (synthesis/engine.py)."""
    return {"dtype": SETTINGS["dtype"], "max_model_len": 1024, "max_num_seqs": SETTINGS["max_num_seqs"], "seed": 0,
            "enforce_eager": True, "block_size": 32, "enable_prefix_caching": True, "enable_chunked_prefill": False,
            "max_num_batched_tokens": 4096, "structured_outputs_config": {"backend": "xgrammar"}}  # fmt: skip


def constraint(schema: dict) -> dict[str, str]:
    """JSON with one blank after commas and colons, as our engines ask for it."""
    import xgrammar

    made = xgrammar.Grammar.from_json_schema(json.dumps(schema), any_whitespace=False, separators=(", ", ": "))
    return {"grammar": str(made)}


def bare(folder: str):
    """vLLM's own offline engine."""
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    engine = LLM(model=folder, **engine_options())

    def side() -> list[str]:
        engine.reset_prefix_cache()
        given = calls(SETTINGS["seed"])
        parameters = [
            SamplingParams(temperature=0.0, top_p=c.top_p, repetition_penalty=c.repetition_penalty,
                           max_tokens=c.max_tokens, structured_outputs=StructuredOutputsParams(**constraint(c.schema)))
            for c in given
        ]  # fmt: skip
        outputs = engine.chat([c.messages for c in given], parameters, use_tqdm=False)
        return [o.outputs[0].text for o in outputs]

    return side


def by_ray_data(folder: str) -> tuple[list[str], float]:
    """Answers of ray.data.llm and the seconds of its engine stage."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    def row(item: dict) -> dict:
        call = json.loads(item["call"])
        sampling = {name: call[name] for name in ("top_p", "repetition_penalty", "max_tokens")}
        sampling |= {"temperature": 0.0, "structured_outputs": constraint(call["schema"])}
        return {"messages": call["messages"], "sampling_params": sampling, "place": item["place"]}

    n, other = SETTINGS["requests"], SETTINGS["seed"] + 1
    given = [json.dumps(call._asdict()) for call in (*calls(other), *calls(SETTINGS["seed"]))]
    config = vLLMEngineProcessorConfig(
        model_source=folder, engine_kwargs=engine_options(), batch_size=n, max_concurrent_batches=1, concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]}, log_engine_metrics=False, chat_template_stage=True,
        tokenize_stage=True, detokenize_stage=False,
    )  # fmt: skip

    def answer(item: dict) -> dict:
        return {"text": item["generated_text"], "place": item["place"], "seconds": item["time_taken_llm"]}

    processor = build_processor(config, preprocess=row, postprocess=answer)
    rows = [{"call": call, "place": place} for place, call in enumerate(given)]
    found = processor(ray.data.from_items(rows, override_num_blocks=2)).take_all()
    ours = sorted((one for one in found if one["place"] >= n), key=lambda one: one["place"])
    return [one["text"] for one in ours], max(one["seconds"] for one in ours)


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
            crew = Crew(pool.client, pool.ledger, "m", folder, execution)
            return crew.run(calls(SETTINGS["seed"]), work, failed)[0]

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

    wall: tuple[list[float], list[float]] = [], []
    cpu: tuple[list[float], list[float]] = [], []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {name: SETTINGS[name] for name in ("layers", "hidden", "intermediate", "vocabulary")}
        parameters = random_llm.save(folder, **sizes, texts=(WORDS, random_llm.TEXT))
        execution = LLMExecution(max_num_seqs=SETTINGS["max_num_seqs"], concurrency=SETTINGS["requests"])
        # More CPUs than there are: ray.data.llm's stages reserve one each, beside the engine's.
        ray.init("local", num_cpus=8, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(HERE.parents[1] / "platform")}})  # fmt: skip
        config = LLMConfig(folder, dtype=SETTINGS["dtype"], max_model_len=1024)
        with LLMPool(folder, config, execution) as pool:
            sides = through_ours(pool, execution), bare(folder)
            first, second = sides[0](), sides[1]()
            for turn in range(rounds):
                for place in (0, 1)[:: 1 if turn % 2 == 0 else -1]:
                    _, used, took = clocked(sides[place])
                    cpu[place].append(used)
                    wall[place].append(took)
            del sides
        third, seconds = by_ray_data(folder)
        ray.shutdown()
    found, n = figures(wall), SETTINGS["requests"]
    data = {"requests_per_second": n / seconds, "ours_over_it": found["ours"] * seconds / n, "equal": third == second}
    return {**found, "unit": "requests per second", "equal": first == second, "rounds": rounds,
            "settings": {**SETTINGS, "parameters": parameters}, "cpu": figures(cpu), "ray_data": data}  # fmt: skip


def figures(seconds: tuple[list[float], list[float]]) -> dict[str, float]:
    """Rates of ours and theirs, and the ratio of each round's."""
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    ours, theirs = (SETTINGS["requests"] / statistics.median(times) for times in seconds)
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), "ours": ours,
            "theirs": theirs}  # fmt: skip
