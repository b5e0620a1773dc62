"""A plan that a config or a model cannot use is refused, naming the plan, the row or the option."""

from typing import Any

import pytest

from chuxin.errors import InputError
from chuxin.training.config import (
    FinetuneConfig,
    OptimizerConfig,
    PretrainConfig,
    RerankerConfig,
    TrainExecution,
    TrainingConfig,
)
from chuxin.training.plan_checks import check_fits, check_serves
from chuxin.training.plan_reader import Plan, PlanFile

PLAN = Plan((PlanFile("f", 1),), 4, 9, 3, "v", max_row="query_id 7", longest_row="query_id 8", longest_pair=5,
            longest_pair_row="query_id 9")  # fmt: skip
KNOWN = PLAN._replace(scored_groups=2, margin_groups=3, kind="groups")
BARE = PLAN._replace(without_negatives="query_id 6")


def config(of: type[TrainingConfig] = FinetuneConfig, **changes: Any) -> TrainingConfig:
    return of("p", "m", OptimizerConfig(1e-3, 1), 1, **changes)


@pytest.mark.parametrize(
    ("plan", "served"),
    [
        (PLAN, config()),  # an older plan does not tell what it has
        (PLAN, config(PretrainConfig)),
        (PLAN, config(distill="kl_div", false_negative_margin=0.5)),
        (PLAN._replace(kind="texts"), config(PretrainConfig)),
        (KNOWN, config(distill="m3_kd_loss", false_negative_margin=0.5)),
        (KNOWN, config(RerankerConfig, distill=0.5)),
        (KNOWN._replace(scored_groups=0), config(false_negative_margin=0.5)),
        (KNOWN._replace(scored_groups=0, margin_groups=0), config()),
        (KNOWN._replace(scored_groups=0), config(RerankerConfig)),
        (BARE, config()),
        (PLAN, config(execution=TrainExecution(num_workers=4))),
    ],
)
def test_served(plan: Plan, served: TrainingConfig) -> None:
    check_serves(plan, "here", served, "stage")


@pytest.mark.parametrize(
    ("plan", "refused", "message"),
    [
        (PLAN._replace(kind="texts"), config(), "here: this plan holds texts, and the training takes groups"),
        (KNOWN, config(PretrainConfig), "here: this plan holds groups, and the training takes texts"),
        (PLAN, config(execution=TrainExecution(num_workers=5, min_workers=1)), "here: 5 workers cannot share 4 slices"),
        (BARE, config(in_batch_negatives=False), "here: query_id 6: it has no negative"),
        (BARE, config(RerankerConfig), "here: query_id 6: it has no negative"),
        (KNOWN._replace(scored_groups=0), config(distill="kl_div"), "stage.distill: it needs teacher scores"),
        (KNOWN._replace(scored_groups=0), config(RerankerConfig, distill=0.5), "stage.distill: it needs teacher scor"),
        (KNOWN._replace(margin_groups=0), config(false_negative_margin=0.5), "stage.false_negative_margin: it needs"),
    ],
)
def test_not_served(plan: Plan, refused: TrainingConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_serves(plan, "here", refused, "stage")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"vocabulary": "w"}, "here: the plan was made with another tokenizer"),
        ({"vocab_size": 9}, "here: query_id 7: token id 9 is beyond the model's 9 emb"),
        ({"max_length": 2}, "here: query_id 8: the text has 3 tokens"),
        ({"max_length": 4, "pairs": True}, "here: query_id 9: the query makes 5 tokens with a passage, the model ta"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(change: dict, problem: str) -> None:
    fitting = {"vocabulary": "v", "vocab_size": 10, "max_length": 3}
    check_fits(PLAN, "here", **fitting)
    check_fits(PLAN, "here", **{**fitting, "max_length": 5}, pairs=True)
    with pytest.raises(InputError, match=problem):
        check_fits(PLAN, "here", **{**fitting, **change})
