"""What each config trains, freezes, needs and exports."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from chuxin.errors import InputError
from chuxin.models.checkpoint import load_model, load_tokenizer
from chuxin.models.packed import pack
from chuxin.models.reranker import CrossEncoder, load_reranker
from chuxin.models.retromae import RetroMAE
from chuxin.models.vocabulary import vocabulary_fingerprint
from chuxin.training.assembly import EXTRA_FILE, Assembly, assemble, export, new_objective, scored_output
from chuxin.training.config import FinetuneConfig, OptimizerConfig, PretrainConfig, RerankerConfig, TrainExecution
from chuxin.training.finetune import Contrastive
from chuxin.training.plan_reader import Plan
from chuxin.training.pretrain import Rebuild
from chuxin.training.rerank import Listwise
from chuxin.training.shards import trained

CPU = torch.device("cpu")
START = {"plan": "p", "model": "m", "optimizer": OptimizerConfig(1e-3, 1), "seed": 1, "dtype": "fp32"}
CHECKPOINTING = TrainExecution(activation_checkpointing=True)


def plan_of(path: str) -> Plan:
    return Plan((), 4, 20, 30, vocabulary_fingerprint(load_tokenizer(path)), ("a",))


def made(path: str, config: object) -> Assembly:
    return assemble(config, path, plan_of(path), "plan", None, CPU)


def test_pretraining_wraps_the_model_and_goes_on_from_its_export(tiny_model: str, tmp_path: Path) -> None:
    config = PretrainConfig(**START, execution=CHECKPOINTING)
    assembly = made(tiny_model, config)
    assert isinstance(assembly.module, RetroMAE) and assembly.model.checkpointing and assembly.work.linear > 0
    assert isinstance(new_objective(config, assembly, assembly.module, plan_of(tiny_model)), Rebuild)
    assert not any("sparse_linear" in name or "colbert_linear" in name for name in trained(assembly.module))
    torch.nn.init.ones_(assembly.module.head.bias)
    export(assembly, str(tmp_path / "model"))
    assert (tmp_path / "model" / EXTRA_FILE).is_file() and not load_model(str(tmp_path / "model")).heads_trained
    assert made(str(tmp_path / "model"), config).module.head.bias.min() == 1


def test_damaged_weights_of_the_decoder_are_named(tiny_model: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / EXTRA_FILE).write_bytes(b"PK not whole")
    with pytest.raises(InputError, match="retromae.pt: the decoder's weights cannot be read"):
        made(str(model), PretrainConfig(**START))


@pytest.mark.parametrize("heads", ["dense", "all"])
def test_finetuning_trains_the_heads_it_is_asked_to(tiny_model: str, tmp_path: Path, heads: str) -> None:
    config = FinetuneConfig(**START, heads=heads)
    assembly = made(tiny_model, config)
    assert assembly.module is assembly.model and not assembly.model.checkpointing
    assert ("sparse_linear.weight" in trained(assembly.module)) == (heads == "all")
    assert isinstance(new_objective(config, assembly, assembly.model, plan_of(tiny_model)), Contrastive)
    assert scored_output(config, assembly.model)(pack([[0, 5, 2]])).shape == (1, 32)
    export(assembly, str(tmp_path / "model"))
    assert load_model(str(tmp_path / "model")).heads_trained == (heads == "all")
    assert not (tmp_path / "model" / EXTRA_FILE).exists()


def test_a_reranker_is_exported_as_one(tiny_model: str, tmp_path: Path) -> None:
    config = RerankerConfig(**START)
    assembly = made(tiny_model, config)
    assert isinstance(assembly.module, CrossEncoder)
    assert isinstance(new_objective(config, assembly, assembly.model, plan_of(tiny_model)), Listwise)
    export(assembly, str(tmp_path / "model"))
    again = load_reranker(str(tmp_path / "model"))
    packed = pack([[0, 5, 2, 2, 6, 2]])
    score = scored_output(config, assembly.model)(packed)
    assert score.shape == (1,) and torch.equal(again(packed), score)


def test_plans_that_do_not_fit_are_refused(tiny_model: str) -> None:
    plan = plan_of(tiny_model)
    with pytest.raises(InputError, match="another tokenizer"):
        assemble(FinetuneConfig(**START), tiny_model, plan._replace(vocabulary="x"), "plan", None, CPU)
    long = plan._replace(longest_pair=1000, longest_pair_row="query_id 7, passage_id 9")
    assemble(FinetuneConfig(**START), tiny_model, long, "plan", None, CPU)
    with pytest.raises(InputError, match="plan: query_id 7, passage_id 9: the query makes 1000 tokens with a passage"):
        assemble(RerankerConfig(**START), tiny_model, long, "plan", None, CPU)


def test_a_tokenizer_without_a_mask_is_refused_for_pretraining_alone(tiny_model: str, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    load_tokenizer(tiny_model).save_pretrained(model)
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["mask_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    made(str(model), FinetuneConfig(**START))
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        made(str(model), PretrainConfig(**START))
