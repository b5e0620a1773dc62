"""The passage gate: an LLM's verdicts on a sample, distilled into a classifier that scores every passage.

Logistic regression on hashed character n-grams: the pattern of ChineseWebText's EvalWeb and CCI3-HQ, small enough to
score a passage of 400 characters in about half a millisecond. Leaves out: asking the LLM (pipeline.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from chuxin.schema import KEEP

GATE = pa.schema([("passage_id", pa.int64()), ("score", pa.float32()), ("status", pa.string())])
"""Every passage's probability of a "yes", and "keep", "gate", or the status it had before."""

FALLEN = "gate"
"""Status of a passage that the gate rejects."""

_FEATURES = 1 << 18
_NGRAMS = (1, 3)


class Gate(NamedTuple):
    """A fitted gate: weights float64 [262144] over hashed n-grams, intercept, threshold and what it was chosen by."""

    weights: np.ndarray
    intercept: float
    threshold: float
    facts: dict[str, float]


def fit(texts: Sequence[str], scores: np.ndarray, seed: int, validation_share: float, keep_recall: float) -> Gate:
    """Fits the classifier to an LLM's verdicts.

    Args:
        texts: Passages, as the LLM saw them.
        scores: Probabilities of "yes", float [texts]; at least 0.5 counts as yes.
        seed: Draws the validation set.
        validation_share: Share of the texts whose verdicts choose the threshold.
        keep_recall: Share of the validation set's "yes" passages that the threshold keeps.

    Returns:
        The gate. Where the LLM said the same of every passage there is nothing to learn: the weights are zero and the
        threshold keeps all (all yes) or none (all no).
    """
    labels = np.asarray(scores) >= 0.5
    facts = {"labels": len(texts), "yes_share": float(labels.mean())}
    if labels.all() or not labels.any():
        return Gate(np.zeros(_FEATURES), 10.0 if labels.all() else -10.0, 0.5, facts)
    order = np.random.default_rng(seed).permutation(len(texts))
    held = max(2, round(validation_share * len(texts)))
    valid, train = order[:held], order[held:]
    if labels[train].all() or not labels[train].any() or not labels[valid].any():
        # Too few of one kind to hold some back: the threshold then comes from the passages it learns from.
        train = valid = order
    features = _features(texts)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200).fit(features[train], labels[train])
    said = model.predict_proba(features[valid])[:, 1]
    good = np.sort(said[labels[valid]])
    threshold = float(good[int((1 - keep_recall) * len(good))])
    kept = said >= threshold
    facts |= {
        "validation": len(valid), "recall": float(kept[labels[valid]].mean()),
        "precision": float(labels[valid][kept].mean()), "kept_share": float(kept.mean()), "threshold": threshold,
    }  # fmt: skip
    return Gate(model.coef_[0], float(model.intercept_[0]), threshold, facts)


def score(gate: Gate, texts: Sequence[str]) -> np.ndarray:
    """Returns the probabilities of "yes", float32 [texts]."""
    if not len(texts):
        return np.zeros(0, np.float32)
    logits = _features(texts) @ gate.weights + gate.intercept
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def statuses(gate: Gate, scores: np.ndarray, before: Sequence[str]) -> list[str]:
    """Returns each passage's status: what fell before stays fallen, the rest is kept from the threshold on."""
    threshold = np.float32(gate.threshold)
    return [s if s != KEEP else KEEP if value >= threshold else FALLEN for s, value in zip(before, scores, strict=True)]


def save(gate: Gate, path: str) -> None:
    """Writes a gate to an .npz file."""
    np.savez(path, weights=gate.weights, intercept=gate.intercept, threshold=gate.threshold)


def load(path: str) -> Gate:
    """Reads a gate; its facts stay behind."""
    with np.load(path) as held:
        return Gate(held["weights"], float(held["intercept"]), float(held["threshold"]), {})


def _features(texts: Sequence[str]):  # noqa: ANN202 (scipy's matrix type, which this package does not import)
    hashing = HashingVectorizer(analyzer="char", ngram_range=_NGRAMS, n_features=_FEATURES, alternate_sign=False,
                                lowercase=True)  # fmt: skip
    return hashing.transform(texts)
