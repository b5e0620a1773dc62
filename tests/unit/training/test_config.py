"""Values that make no sense are refused when the config is made."""

import pytest

from chuxin.training.config import FinetuneConfig, OptimizerConfig, PretrainConfig, TrainExecution, required_cpus

OPTIMIZER = OptimizerConfig(learning_rate=1e-4, warmup_steps=0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0, warmup_steps=0), "learning_rate"),
        (lambda: TrainExecution(num_workers=0), "num_workers"),
        (lambda: TrainExecution(checkpoint_every=0), "checkpoint_every"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, temperature=0.0), "temperature"),
        (lambda: FinetuneConfig("p", "m", OPTIMIZER, seed=1, max_steps=0), "max_steps"),
        (lambda: PretrainConfig("p", "m", OPTIMIZER, seed=1, dropout=1.0), "dropout"),
        (lambda: PretrainConfig("p", "m", OPTIMIZER, seed=1, decoder_mlm_probability=1.0), "decoder_mlm_probability"),
    ],
)
def test_refused(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_cpus_of_a_run() -> None:
    config = FinetuneConfig("p", "m", OPTIMIZER, seed=1, execution=TrainExecution(num_workers=3, cpus_per_worker=2))
    assert required_cpus(config) == config.execution.required_cpus() == 6
