"""Tokens that an engine computes in a row's second call: the document first, against the document last.

The two faithful calls (category, role and scene; then the query) are sent one after the other for each passage, by
our prompts and by the same prompts with the document moved behind the instruction, as the published scripts have it.
A call's computed tokens are those of its prompt less those that vLLM found in its prefix cache. `ratio` is the share
of the second call's tokens that the order saves. Equal means: passages are of the stated length, and both orders send
the same characters for the same answers to be given.
"""

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "unit" / "synthesis"))
import random_llm  # noqa: E402  (the unit tests make the same kind of model)

SETTINGS = {
    "passages": 24, "passage_tokens": 300, "block": 32, "layers": 2, "hidden": 64, "vocabulary": 4000, "seed": 3,
}  # fmt: skip
PERSONA = {"category": "百科", "role": "学生", "scene": "写作业"}
SYLLABLES = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"


def passages(folder: str) -> list[str]:
    """Texts of made words, cut to the length in tokens."""
    from chuxin.synthesis.cut import Cutter

    rng = random.Random(SETTINGS["seed"])
    words = ["".join(rng.choices(SYLLABLES, k=2)) for _ in range(300)]
    cutter = Cutter(folder, SETTINGS["passage_tokens"])
    return [cutter.cut("".join(rng.choices(words, k=900))) for _ in range(SETTINGS["passages"])]


def document_last(call):
    """The same prompt, its document behind the instruction."""
    from chuxin.synthesis.render import FENCE

    content = call.messages[0]["content"]
    end = content.index(FENCE[1]) + len(FENCE[1]) + 1
    return call._replace(messages=[{"role": "user", "content": content[end:] + "\n" + content[: end - 1]}])


def both(passage: str) -> list:
    from chuxin.synthesis.calls import writing
    from chuxin.synthesis.config import Sampling
    from chuxin.synthesis.render import persona_schema, query_schema

    sampling = Sampling(temperature=0.0, max_tokens=8)
    return [writing("persona", passage, sampling, 0, persona_schema()),
            writing("query", passage, sampling, 0, query_schema(), form="问题", **PERSONA)]  # fmt: skip


async def computed(client, rows: list[list]) -> tuple[list[int], int]:
    """Tokens computed in the first and the second calls, and the tokens of the second calls' prompts."""
    totals, asked = [0, 0], 0
    for calls in rows:
        for place, call in enumerate(calls):
            answer = await client.ask(call)
            totals[place] += answer.prompt_tokens - answer.cached_tokens
            asked += answer.prompt_tokens * place
    return totals, asked


def measure(rounds: int) -> dict:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    import ray
    from tokenizers import Tokenizer

    from chuxin.synthesis.config import LLMConfig, LLMExecution
    from chuxin.synthesis.llm import LLMPool
    from chuxin.synthesis.render import template

    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(SETTINGS["seed"])
        words = ["".join(rng.choices(SYLLABLES, k=2)) for _ in range(300)]
        # The tokenizer knows the words of prompts and passages, as a real LLM's does: a token is about 1.5 characters.
        texts = (template("persona"), template("query"), *("".join(rng.sample(words, 100)) for _ in range(20)))
        sizes = {name: SETTINGS[name] for name in ("layers", "hidden", "vocabulary")}
        random_llm.save(folder, **sizes, texts=texts)
        made = passages(folder)
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        lengths = [len(tokenizer.encode(p, add_special_tokens=False).ids) for p in made]
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
                 runtime_env={"env_vars": {"PYTHONPATH": str(HERE.parents[1] / "platform")}})  # fmt: skip
        config = LLMConfig(folder, dtype="float32", max_model_len=2048)
        with LLMPool(folder, config, LLMExecution()) as pool:
            first_rows = [both(p) for p in made]
            last_rows = [[document_last(c) for c in row] for row in first_rows]
            first, asked = asyncio.run(computed(pool.client, first_rows))
            last, asked_last = asyncio.run(computed(pool.client, last_rows))
        ray.shutdown()
    same = all(sorted(a.messages[0]["content"]) == sorted(b.messages[0]["content"])
               for ours, theirs in zip(first_rows, last_rows, strict=True)
               for a, b in zip(ours, theirs, strict=True))  # fmt: skip
    near = all(SETTINGS["passage_tokens"] - 3 <= n <= SETTINGS["passage_tokens"] for n in lengths)
    saved = 1 - first[1] / last[1]
    return {
        "ratio": saved, "ratio_min": saved, "ratio_max": saved, "ours": first[1] / len(made),
        "theirs": last[1] / len(made), "unit": "tokens computed in the second call", "equal": same and near,
        "rounds": 1, "settings": SETTINGS, "prompt_tokens": asked / len(made),
        "prompt_tokens_document_last": asked_last / len(made), "first_call": first[0] / len(made),
    }  # fmt: skip
