"""The sample LLM and reranker on entities that they never saw: the benchmarks' of the sample recipe's world.

Written queries: each held-out passage alone, two queries a rich call, kinds, difficulties and lengths drawn, sampled as
published (temperature 0.7, top-p 0.8, repetition penalty 1.05), no constraint on the answer: an answer that is no JSON
of two strings fails all its queries. `found` counts queries whose passage BM25 ranks in its top 3 of the benchmark's
450, or the model in SAMPLE_FINETUNED (a directory, such as the finetune stage's) if it is given.
Judge: for each criterion as many good queries as planted faults; `answered` takes queries of the other passages of the
same entity, and of neighbours, for bad.
Relabel: pairs that the reranker scores within ±1; whose word is right how often.
Reranker: each benchmark query with its passage and the 19 others that BM25 ranks best.
"""

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chuxin.encoding.engine import Encoder
from chuxin.encoding.pairs import PairScorer
from chuxin.sample.config import SampleConfig
from chuxin.sample.queries import benchmark
from chuxin.sample.training import calls
from chuxin.sample.training.forms import MOST_SHARED, kind_of, length_of, shared_run
from chuxin.sample.world import BENCHMARKS, Passage
from chuxin.search.bm25 import BM25

SETTINGS = {
    "seed": 7, "passages_a_benchmark": 450, "rich_calls": 150, "verdicts_a_criterion": 300, "unsure_among": 4000,
    "unsure_below": 1.0,
}  # fmt: skip
WORLD = SampleConfig(seed=7, passages=7000, benchmark_passages=450, benchmark_queries=300)
MODELS = resources.files("chuxin.sample").joinpath("models")
PUBLISHED = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 0, "repetition_penalty": 1.05}
NEIGHBOURS = 20
CRITERIA = ("standalone", "searchable", "single_intent", "answered")


class Writer:
    """The sample LLM, answering many prompts at once."""

    def __init__(self, directory: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def _inputs(self, prompts: Sequence[str]) -> Any:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], most: int = 96, batch: int = 32, **sampling: Any) -> list[str]:
        """Whole answers; by default sampled as published."""
        sampling = sampling or PUBLISHED
        torch.manual_seed(0)
        out = []
        for at in range(0, len(prompts), batch):
            given = self._inputs(prompts[at : at + batch])
            ids = self.model.generate(**given, max_new_tokens=most, **sampling)[:, given["input_ids"].shape[1] :]
            out += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return out

    @torch.inference_mode()
    def yes(self, prompts: Sequence[str], batch: int = 64) -> np.ndarray:
        """Each verdict's probability of yes against no."""
        choices = [self.tokenizer(word)["input_ids"][0] for word in (calls.YES, calls.NO)]
        scores = []
        for at in range(0, len(prompts), batch):
            given = self._inputs(prompts[at : at + batch])
            logits = self.model(**given, logits_to_keep=1).logits[:, -1, choices]
            scores.append(torch.softmax(logits.float(), -1)[:, 0].numpy())
        return np.concatenate(scores)


def written(writer: Writer, rounds: int, finetuned: str | None) -> dict[str, float]:
    """Has queries written for held-out passages and measures them."""
    rng = random.Random(f"written/{rounds}")
    count = SETTINGS["rich_calls"]
    places, asked, prompts = [], [], []
    corpora = {name: benchmark(WORLD, name).corpus for name in BENCHMARKS}
    for number in range(count):
        name = list(BENCHMARKS)[number % len(BENCHMARKS)]
        place = rng.randrange(len(corpora[name]))
        asks = [calls.ask(rng) for _ in range(2)]
        places.append((name, place))
        asked.append(asks)
        prompts.append(calls.render("rich", passage=corpora[name][place].text, count=2, asks=calls.describe(asks)))
    rows = [
        (name, place, ask, query)
        for (name, place), asks, answer in zip(places, asked, writer.answers(prompts), strict=True)
        for ask, query in zip(asks, _parsed(answer), strict=True)
    ]
    found = np.zeros(len(rows), bool)
    for name, corpus in corpora.items():
        texts = [passage.text for passage in corpus]
        mine = [row for row, (own, *_) in enumerate(rows) if own == name]
        queries = [rows[row][3] for row in mine]
        for search in (_bm25, _dense(finetuned)) if finetuned else (_bm25,):
            top = search(texts, queries)
            for row, best in zip(mine, top, strict=True):
                found[row] |= rows[row][1] in best
    lexical = np.zeros(len(rows), bool)
    shared = []
    for row, (name, place, _, query) in enumerate(rows):
        passage = corpora[name][place]
        shared.append(shared_run(query, calls.without_names(passage.text, {passage.entity: None})))
        lexical[row] = bool(query)
    kinds = np.array([kind_of(query) == ask[0] for *_, ask, query in rows])
    uncopied = np.array(shared) <= MOST_SHARED
    lengths = [length_of(query) == ask[2] for *_, ask, query in rows]
    return {
        "valid": float(lexical.mean()), "good": float((found & uncopied & kinds).mean()), "found": float(found.mean()),
        "found_easy": _share(found, [ask[1] == "easy" for *_, ask, _ in rows]),
        "found_hard": _share(found, [ask[1] == "hard" for *_, ask, _ in rows]),
        "uncopied": float(uncopied.mean()), "longest_shared": int(max(shared)),
        "kind": float(kinds.mean()), "length": float(np.mean(lengths)),
    }  # fmt: skip


def drawn(criterion: str) -> Iterator[tuple[calls.Call, str]]:
    """Calls of a criterion, about held-out entities only, each with the text of its document, without end."""
    rng = random.Random(f"labelled/{criterion}")
    corpora = [benchmark(WORLD, name).corpus for name in BENCHMARKS]
    by_entity: dict[str, list[Passage]] = {}
    for passage in (p for corpus in corpora for p in corpus):
        by_entity.setdefault(passage.entity.name, []).append(passage)
    groups = [group for group in by_entity.values() if len(group) >= 4]
    while True:
        group, strangers = rng.sample(groups, 2)
        group = rng.sample(group, len(group))
        page, others = calls.document(rng, group[: rng.randint(1, 2)]), group[2:]
        good = rng.random() < 0.5
        if criterion == "answered":
            yield calls.answered(rng, page, others, strangers), page.text
        elif criterion == "gate":
            yield calls.gate(rng, page if good else None, strangers), page.text
        else:
            yield calls.verdict(rng, criterion, group[0], good), page.text


def labelled(criterion: str, count: int) -> list[tuple[str, bool]]:
    """Prompts of a criterion with their right verdicts, half of them yes."""
    made: dict[bool, list[str]] = {True: [], False: []}
    for call, _ in drawn(criterion):
        made[call.answer == calls.YES].append(call.prompt)
        if min(map(len, made.values())) >= count // 2:
            return [(prompt, truth) for truth, prompts in made.items() for prompt in prompts[: count // 2]]
    raise AssertionError  # drawn never ends


def relabelled(writer: Writer, directory: str) -> dict[str, float]:
    """Where the reranker is unsure, as the sample recipe's relabel stage asks: whose word is right, and how often."""
    made = list(itertools.islice(drawn("answered"), SETTINGS["unsure_among"]))
    scorer = PairScorer(directory, 48, 160, 8192)
    queries, texts = [call.query.text for call, _ in made], [text for _, text in made]
    score_N = scorer.score(queries, texts, np.arange(len(made))[:, None].repeat(2, axis=1))
    unsure = np.flatnonzero(np.abs(score_N) <= SETTINGS["unsure_below"])
    truth = np.array([made[place][0].answer == calls.YES for place in unsure])
    said = writer.yes([made[place][0].prompt for place in unsure]) > 0.5
    return {"pairs": len(unsure), "share": len(unsure) / len(made), "llm": float((said == truth).mean()),
            "reranker": float(((score_N[unsure] > 0) == truth).mean())}  # fmt: skip


def reranked(directory: str) -> dict[str, float]:
    """How the reranker orders and parts a query's passage and 19 neighbours, BM25's share of first places beside it."""
    scorer = PairScorer(directory, 48, 160, 8192)
    first, lexical, above, below = [], [], [], []
    for name in BENCHMARKS:
        task = benchmark(WORLD, name)
        texts = [passage.text for passage in task.corpus]
        best = BM25(texts).search([query.text for query in task.queries], NEIGHBOURS)[1]
        lists = [[gold, *(p for p in row.tolist() if p != gold)][:NEIGHBOURS]
                 for gold, row in zip(task.gold, best, strict=True)]  # fmt: skip
        pairs = np.array([(query, place) for query, places in enumerate(lists) for place in places])
        scores_QP = scorer.score([query.text for query in task.queries], texts, pairs).reshape(-1, NEIGHBOURS)
        first += (scores_QP.argmax(1) == 0).tolist()
        lexical += [row[0] == gold for gold, row in zip(task.gold, best.tolist(), strict=True)]
        above += (scores_QP[:, 0] > 0).tolist()
        below += (scores_QP[:, 1:] < 0).ravel().tolist()
    names = ("gold_first_of_20", "gold_first_by_bm25", "gold_above_0", "neighbours_below_0")
    return {name: float(np.mean(values)) for name, values in zip(names, (first, lexical, above, below), strict=True)}


def measure(rounds: int) -> dict[str, Any]:
    """`ratio`: the share of written queries that are found, not copied and of the kind asked for."""
    writer = Writer(str(MODELS.joinpath("llm")))
    judge = {}
    for criterion in (*CRITERIA, "gate"):
        prompts, truth = zip(*labelled(criterion, SETTINGS["verdicts_a_criterion"]), strict=True)
        judge[criterion] = float(((writer.yes(prompts) > 0.5) == np.array(truth)).mean())
    texts = [written(writer, number, os.environ.get("SAMPLE_FINETUNED")) for number in range(rounds)]
    means = {key: float(np.mean([one[key] for one in texts])) for key in texts[0]}
    reranker = str(MODELS.joinpath("reranker"))
    return {
        "ratio": means["good"], "written": means, "judge": judge,
        "judge_mean": float(np.mean([judge[criterion] for criterion in CRITERIA])), "reranker": reranked(reranker),
        "relabel": relabelled(writer, reranker), "rounds": rounds, "settings": SETTINGS, "equal": True,
    }  # fmt: skip


def _parsed(answer: str) -> list[str]:
    """The two queries of an answer, two empty ones if it is not as asked."""
    try:
        queries = json.loads(answer)["queries"]
    except (ValueError, KeyError, TypeError):
        return ["", ""]
    return queries if len(queries) == 2 and all(isinstance(query, str) for query in queries) else ["", ""]


def _bm25(texts: list[str], queries: list[str]) -> list[set[int]]:
    return [set(row.tolist()) for row in BM25(texts).search(queries, 3)[1]]


def _dense(directory: str) -> Callable[[list[str], list[str]], list[set[int]]]:
    encoder = Encoder(directory, max_length=128, batch_tokens=8192)

    def search(texts: list[str], queries: list[str]) -> list[set[int]]:
        similar_QP = encoder.encode(queries) @ encoder.encode(texts).T
        return [set(row.tolist()) for row in np.argsort(-similar_QP, axis=1)[:, :3]]

    return search


def _share(found: np.ndarray, where: Sequence[bool]) -> float:
    return float(found[np.array(where)].mean())

