"""The shipped sample models: files, size, and what they do on entities that they never saw."""

import json
import random
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from chuxin.encoding.pairs import PairScorer
from chuxin.sample.config import SampleConfig
from chuxin.sample.queries import benchmark
from chuxin.sample.training import calls, forms, train_llm
from chuxin.synthesis import render

MODELS = Path(str(resources.files("chuxin.sample").joinpath("models")))
WORLD = SampleConfig(seed=7, passages=7000, benchmark_passages=450, benchmark_queries=300)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "llm", padding_side="left")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODELS / "llm", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out():
    return benchmark(WORLD, "sample-products")


def inputs(tokenizer, prompts):
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)


def test_the_shipped_models_stay_small():
    sizes = {path: path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 15e6, sizes


def test_the_llm_is_what_engines_run(model):
    config = json.loads((MODELS / "llm" / "config.json").read_text())
    assert isinstance(model, Qwen2ForCausalLM) and config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert 2e6 <= sum(p.numel() for p in model.parameters()) <= 5e6


def test_the_tokenizer_loads_as_it_was_made(tokenizer):
    assert [len(tokenizer(word)["input_ids"]) for word in (render.YES, render.NO)] == [1, 1]
    text = "“𠮷野家”的 RetroMAE，\n鿏！\t是否"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|end|>" and tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_prompts_have_not_changed_since_the_training(tokenizer):
    # Each fixed part of a prompt is one token; words the model never saw would be spelled in many.
    for part in train_llm.fixed_parts():
        assert len(tokenizer(part)["input_ids"]) == 1, f"train the sample LLM again: a prompt holds {part!r}"


def test_written_queries_are_as_asked(tokenizer, model, held_out):
    rng = random.Random(1)
    places = rng.sample(range(len(held_out.corpus)), 8)
    asks = [[calls.ask(rng), calls.ask(rng)] for _ in places]
    prompts = [
        calls.render("rich", passage=held_out.corpus[place].text, count=2, asks=calls.describe(two))
        for place, two in zip(places, asks, strict=True)
    ]
    given = inputs(tokenizer, prompts)
    with torch.inference_mode():
        ids = model.generate(**given, max_new_tokens=96, do_sample=False)[:, given["input_ids"].shape[1] :]
    right, uncopied, named = 0, 0, 0
    for place, two, answer in zip(places, asks, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
        subject = held_out.corpus[place].entity
        masked = forms.without_names(held_out.corpus[place].text, {subject: None})
        queries = json.loads(answer)["queries"]
        assert len(queries) == 2
        for ask, query in zip(two, queries, strict=True):
            right += forms.kind_of(query) == ask[0]
            uncopied += forms.shared_run(query, masked) <= forms.MOST_SHARED
            named += any(part in query for part in (subject.region, subject.name, *subject.aliases, subject.short))
    assert (right, uncopied) >= (15, 15), (right, uncopied)
    assert right >= 15 and uncopied >= 15 and named >= 8


@pytest.mark.parametrize("criterion", ["standalone", "single_intent", "searchable"])
def test_planted_bad_queries_are_refused(tokenizer, model, held_out, criterion):
    rng = random.Random(criterion)
    passages = rng.sample(held_out.corpus, 40)
    made = [calls.verdict(rng, criterion, passage, number % 2 == 0) for number, passage in enumerate(passages)]
    assert right(tokenizer, model, made) >= 34


def right(tokenizer, model, made) -> int:
    """How many verdicts of the model are those of the calls."""
    choices = [tokenizer(word)["input_ids"][0] for word in (render.YES, render.NO)]
    with torch.inference_mode():
        logits = model(**inputs(tokenizer, [call.prompt for call in made]), logits_to_keep=1).logits[:, -1, choices]
    return sum((float(yes) > float(no)) == (call.answer == render.YES)
               for (yes, no), call in zip(logits, made, strict=True))  # fmt: skip


def test_the_llm_tells_whether_a_document_answers(tokenizer, model, held_out):
    rng = random.Random(2)
    entities = {}
    for passage in held_out.corpus:
        entities.setdefault(passage.entity.name, []).append(passage)
    mine = [group for group in entities.values() if len(group) >= 4]
    made = []
    for _ in range(60):
        group, strangers = rng.sample(mine, 2)
        made.append(calls.answered(rng, calls.document(rng, group[:2]), group[2:], strangers))
    assert 20 <= sum(call.answer == render.YES for call in made) <= 40
    assert right(tokenizer, model, made) >= 48


def test_the_reranker_tells_the_asked_fact_from_an_entitys_others(held_out):
    rng = random.Random(4)
    texts = [passage.text for passage in held_out.corpus]
    queries = rng.sample(range(len(held_out.queries)), 40)
    pairs, lists = [], []
    for number, query in enumerate(queries):
        gold = held_out.gold[query]
        own = [p for p, one in enumerate(held_out.corpus) if one.entity == held_out.corpus[gold].entity and p != gold]
        lists.append([gold, *own])
        pairs += [(number, place) for place in lists[-1]]
    scorer = PairScorer(str(MODELS / "reranker"), 48, 160, 8192)
    scores = scorer.score([held_out.queries[q].text for q in queries], texts, np.array(pairs)).tolist()
    right = above = 0
    for places in lists:
        mine, scores = scores[: len(places)], scores[len(places) :]
        right += max(mine) == mine[0]
        above += mine[0] > 0 > max(mine[1:])
    assert right >= 35 and above >= 32, (right, above)
