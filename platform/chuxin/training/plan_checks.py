"""What is refused of a plan before a step: by the driver what config and plan tell, by the workers what a model tells.

Leaves out: what a config alone tells (config.py), a plan's files (plan_reader.py).
"""

from __future__ import annotations

from chuxin.errors import InputError
from chuxin.training.config import FinetuneConfig, PretrainConfig, RerankerConfig, TrainingConfig
from chuxin.training.plan_reader import Plan


def check_serves(plan: Plan, uri: str, config: TrainingConfig, where: str) -> None:
    """Checks that a plan has what a config's objective learns from, and can be shared by its workers.

    Args:
        plan: The plan.
        uri: Its artifact; named in errors.
        config: Of the stage.
        where: The stage; named in errors.

    Raises:
        InputError: It is a plan of the other kind, has fewer slices than there are workers, a group without negatives
            where each needs some, or no teacher scores where they are learned from.
    """
    kind = "texts" if isinstance(config, PretrainConfig) else "groups"
    if plan.kind not in (None, kind):
        remedy = "Name the pack stage over " + {"groups": "groups", "texts": "passages"}[kind]
        raise InputError(uri, f"this plan holds {plan.kind}, and the training takes {kind}", remedy)
    workers = config.execution.num_workers
    if workers > plan.slices:
        remedy = f"Lower num_workers to {plan.slices}, or pack again with more slices"
        raise InputError(uri, f"{workers} workers cannot share {plan.slices} slices", remedy)
    if isinstance(config, RerankerConfig):
        if plan.without_negatives is not None:
            remedy = "Pack with min_negatives: 1, or mine negatives for it"
            raise InputError(_at(uri, plan.without_negatives), "it has no negative, which a reranker needs", remedy)
        if config.distill:
            _require_scores(f"{where}.distill", plan.scored_groups, "each of its passages")
    if isinstance(config, FinetuneConfig):
        if not config.in_batch_negatives and plan.without_negatives is not None:
            remedy = "Set in_batch_negatives to true, or pack with min_negatives: 1"
            problem = "it has no negative, and in_batch_negatives is false"
            raise InputError(_at(uri, plan.without_negatives), problem, remedy)
        if config.distill != "none":
            _require_scores(f"{where}.distill", plan.scored_groups, "each of its passages")
        if config.false_negative_margin is not None:
            _require_scores(f"{where}.false_negative_margin", plan.margin_groups, "its positive and a negative")


def check_fits(
    plan: Plan, uri: str, vocabulary: str, vocab_size: int, max_length: int, pairs: bool = False
) -> None:
    """Checks that a plan's token ids mean what a model takes them for, and that it can take its texts.

    Args:
        plan: The plan.
        uri: Its artifact; named in errors.
        vocabulary: Fingerprint of the model's tokenizer.
        vocab_size: Rows of its embedding table.
        max_length: Most tokens it takes.
        pairs: Whether it takes each query together with a passage.

    Raises:
        InputError: Another vocabulary, or ids or lengths beyond the model's tables.
    """
    repack = "Pack again with this model's tokenizer"
    if plan.vocabulary != vocabulary:
        raise InputError(uri, "the plan was made with another tokenizer than the model's", repack)
    if plan.max_token_id >= vocab_size:
        problem = f"token id {plan.max_token_id} is beyond the model's {vocab_size} embeddings"
        raise InputError(_at(uri, plan.max_row), problem, repack)
    if plan.longest > max_length:
        remedy = f"Pack again with at most {max_length} tokens a text"
        problem = f"the text has {plan.longest} tokens, the model takes {max_length}"
        raise InputError(_at(uri, plan.longest_row), problem, remedy)
    if pairs and plan.longest_pair > max_length:
        raise pair_too_long(_at(uri, plan.longest_pair_row), plan.longest_pair, max_length)


def pair_too_long(where: str, tokens: int, most: int) -> InputError:
    """Returns the error of a query that is beyond a model's length with one of its passages."""
    problem = f"the query makes {tokens} tokens with a passage, the model takes {most}"
    return InputError(where, problem, "Pack again with a smaller query_max_len or passage_max_len")


def _require_scores(option: str, groups: int | None, what: str) -> None:
    """Raises InputError if a plan is known (None: it does not tell) to have no group with scores of what is needed."""
    if groups == 0:
        problem = f"it needs teacher scores, and no group of the plan has one of {what}"
        remedy = "Pack groups that a reranker has scored (the select stage's), or leave the option out"
        raise InputError(option, problem, remedy)


def _at(uri: str, row: str) -> str:
    return f"{uri}: {row}" if row else uri
