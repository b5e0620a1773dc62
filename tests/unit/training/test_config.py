"""Values that make no sense are refused when the config is made."""

import pytest

from chuxin.training.config import (
    DevConfig,
    FinetuneConfig,
    OptimizerConfig,
    PretrainConfig,
    RerankerConfig,
    TrainExecution,
)

OPTIMIZER = OptimizerConfig(learning_rate=1e-4, warmup_steps=0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0, warmup_steps=0), "learning_rate"),
        (lambda: OptimizerConfig(1e-4, 0, schedule="wsd"), "decay_steps"),
        (lambda: OptimizerConfig(1e-4, 0, decay_steps=5), "decay_steps"),
        (lambda: OptimizerConfig(1e-4, 0, beta1=1.0), "beta1"),
        (lambda: OptimizerConfig(1e-4, 0, beta2=-0.1), "beta2"),
        (lambda: OptimizerConfig(1e-4, 0, epsilon=0.0), "epsilon"),
        (lambda: TrainExecution(num_workers=0), "num_workers"),
        (lambda: TrainExecution(num_workers=2, min_workers=3), "min_workers"),
        (lambda: DevConfig("b", every=0, query_max_len=8, passage_max_len=8), "every"),
        (lambda: TrainExecution(checkpoint_every=0), "checkpoint_every"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, temperature=0.0), "temperature"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, max_steps=0), "max_steps"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, self_distill_from=1), "self_distill_from"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, ema_decay=1.0), "ema_decay"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, max_loss_ratio=1.0), "max_loss_ratio"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=-1), "seed"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, 1, in_batch_negatives=False, query_to_query=True), "query_to"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, 1, in_batch_negatives=False, passage_to_passage=True), "to_passa"),
        (lambda: RerankerConfig("p", "m", OPTIMIZER, seed=1, distill=1.5), "distill"),
        (lambda: PretrainConfig("p", "m", OPTIMIZER, seed=1, dropout=1.0), "dropout"),
        (lambda: PretrainConfig("p", "m", OPTIMIZER, seed=1, decoder_mlm_probability=1.0), "decoder_mlm_probability"),
    ],
)
def test_refused(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_cpus_of_a_run_are_those_it_can_begin_with() -> None:
    assert TrainExecution(num_workers=3, cpus_per_worker=2).required_cpus() == 6
    assert TrainExecution(num_workers=3, min_workers=1, cpus_per_worker=2).required_cpus() == 2
