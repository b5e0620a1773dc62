"""The model card: what the model is, how to load it, what it scores, what it was made from.

Pure text from plain data. Leaves out: figures (report/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Described(NamedTuple):
    """The model in figures."""

    name: str
    license: str
    """Hub identifier of the licence."""
    layers: int
    hidden: int
    vocabulary: int
    parameters: int
    max_len: int
    heads_trained: bool


class Origin(NamedTuple):
    """One stage behind the model."""

    stage: str
    fingerprint: str
    rows_in: int | None
    rows_out: int | None
    """None of one that is gone."""


def render(model: Described, results: Mapping[str, Any] | None, origins: Sequence[Origin]) -> str:
    """Returns the text of README.md.

    Args:
        model: The model in figures.
        results: The evaluate stage's results.json, or None.
        origins: The stages behind the model, the first one first.
    """
    parts = [_front_matter(model), _what(model), _use(model), _scores(results), _made_from(origins)]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Described) -> str:
    return (
        "---\nlanguage: zh\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n"
        f"license: {model.license}\ntags:\n- sentence-transformers\n- retrieval\n- bge-m3\n---"
    )


def _what(model: Described) -> str:
    trained = (
        "The sparse and the multi-vector head are trained with it: besides the dense vector there are lexical weights "
        "and one vector a token, and dense + 0.3 sparse + multi-vector is a score of its own."
    )
    drawn = "**The sparse and the multi-vector head are there but not trained: use the dense vector only.**"
    return (
        f"# {model.name}\n\nA Chinese retrieval embedding model of the BGE-M3 architecture: {model.layers} "
        f"layers of width {model.hidden}, {model.vocabulary:,} vocabulary entries, {model.parameters:,} "
        f"parameters, texts of up to {model.max_len:,} tokens. The dense vector is the first token's state, "
        "of length 1; compare vectors by their dot product. Queries take no instruction.\n\n"
        + (trained if model.heads_trained else drawn)
    )


def _use(model: Described) -> str:
    flags = ", return_sparse=True, return_colbert_vecs=True" if model.heads_trained else ""
    heads = '\nweights, token_vectors = outputs["lexical_weights"], outputs["colbert_vecs"]'
    more = heads if model.heads_trained else ""
    return f"""## Use

`DIRECTORY` is the folder of this file.

```python
from FlagEmbedding import BGEM3FlagModel

model = BGEM3FlagModel("DIRECTORY", use_fp16=False)
outputs = model.encode(["如何更换自行车的内胎"], max_length={model.max_len}{flags})
vectors = outputs["dense_vecs"]{more}
```

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("DIRECTORY").encode(["如何更换自行车的内胎"])
```

```python
from openai import OpenAI  # after: python jobs/serve.py --model DIRECTORY

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
vectors = client.embeddings.create(model="{model.name}", input=["如何更换自行车的内胎"])
```"""


def _scores(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "## Scores\n\nNot evaluated."
    lines = ["| benchmark | queries | model | nDCG@10 | recall@100 |", "|---|--:|---|---|---|"]
    for task, entry in results["tasks"].items():
        every = entry["slices"]["all"]
        for system in results["systems"]:
            cells = " | ".join(_interval(every["scores"][system][m]) for m in ("ndcg_at_10", "recall_at_100"))
            lines.append(f"| {task} | {every['n']:,} | {system} | {cells} |")
    return "## Scores\n\nIn percent, with the 95 % bootstrap interval over queries.\n\n" + "\n".join(lines)


def _interval(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.2f} [{100 * score['low']:.2f}, {100 * score['high']:.2f}]"


def _made_from(origins: Sequence[Origin]) -> str:
    if not origins:
        return "## Made from\n\nA checkpoint given from outside; its data are not recorded."
    lines = ["| stage | fingerprint | rows in | rows out |", "|---|---|--:|--:|"]
    for origin in origins:
        rows = " | ".join("–" if n is None else f"{n:,}" for n in (origin.rows_in, origin.rows_out))
        lines.append(f"| {origin.stage} | `{origin.fingerprint}` | {rows} |")
    text = "Every stage behind the weights. A fingerprint covers a stage's code version, config and inputs."
    return f"## Made from\n\n{text}\n\n" + "\n".join(lines)
