"""The recipe: the stages in their order and the one config that holds a section for each.

A world's YAML file (jobs/configs/WORLD/recipe.yaml) loads as `RecipeConfig`; a stage without a section does not run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chuxin.config import refs
from chuxin.corpus.config import CurateConfig, IngestConfig
from chuxin.errors import InputError
from chuxin.evaluation.config import EvaluateConfig
from chuxin.mining.config import MineConfig, RerankConfig, SelectConfig
from chuxin.models.config import InitConfig
from chuxin.models.location import PACKAGE
from chuxin.packing.config import PackGroupsConfig, PackTextsConfig
from chuxin.release.config import MergeConfig, ReleaseConfig
from chuxin.runner import Stage
from chuxin.sample.config import SampleConfig
from chuxin.serving.config import ServeConfig
from chuxin.synthesis.config import GateConfig, JudgeConfig, RelabelConfig, SynthesizeConfig
from chuxin.training.config import FinetuneConfig, PretrainConfig, RerankerConfig

STAGES = (
    Stage("sample", "sample", "chuxin.sample.pipeline:run", 1),
    Stage("ingest", "ingest", "chuxin.corpus.pipeline:ingest", 2),
    Stage("curate", "curate", "chuxin.corpus.pipeline:curate", 2),
    Stage("init", "init", "chuxin.models.pipeline:init", 1),
    Stage("pack_pretrain", "pack", "chuxin.packing.pipeline:pack_texts", 4),
    Stage("pretrain", "pretrain", "chuxin.training.worker:pretrain", 4),
    Stage("pack_finetune", "pack", "chuxin.packing.pipeline:pack_groups", 6),
    Stage("finetune", "finetune", "chuxin.training.worker:finetune", 4),
    Stage("gate", "synthesize", "chuxin.synthesis.pipeline:gate", 3),
    Stage("synthesize", "synthesize", "chuxin.synthesis.pipeline:synthesize", 7),
    Stage("judge", "judge", "chuxin.synthesis.pipeline:judge", 2),
    Stage("mine", "mine", "chuxin.mining.pipeline:mine", 3),
    Stage("rerank", "rerank", "chuxin.mining.pipeline:rerank", 3),
    Stage("relabel", "judge", "chuxin.synthesis.pipeline:relabel", 2),
    Stage("select", "mine", "chuxin.mining.pipeline:select", 5),
    Stage("pack_refine", "pack", "chuxin.packing.pipeline:pack_groups", 5),
    Stage("refine", "finetune", "chuxin.training.worker:refine", 3),
    Stage("reranker", "finetune", "chuxin.training.worker:reranker", 3),
    Stage("merge", "merge", "chuxin.release.pipeline:merge", 1),
    Stage("evaluate", "evaluate", "chuxin.evaluation.pipeline:run", 2),
    Stage("release", "release", "chuxin.release.pipeline:run", 3),
    Stage("serve", "serve", "chuxin.serving.pipeline:serve", 2),
)
"""Every stage, in order. Raise a version when the stage's code computes something else."""


@dataclass(frozen=True)
class ClusterConfig:
    """The local Ray session of `python jobs/x.py`; a submitted job takes the cluster it is submitted to."""

    num_cpus: int | None = None
    """Logical CPUs, or null for as many as the machine has."""
    dashboard: bool = True
    """Serve Ray's dashboard on loopback while a job runs."""


@dataclass(frozen=True)
class RecipeConfig:
    """One world: where its artifacts go and what each stage does."""

    name: str
    """Shown in the report and on the model card."""
    workspace: str
    """Directory or URI that holds the artifacts."""
    stage: str | None = None
    """The section that the job of its verb runs without `--stage`; null: the first of that verb here."""
    execution: ClusterConfig = field(default_factory=ClusterConfig)
    sample: SampleConfig | None = None
    ingest: IngestConfig | None = None
    curate: CurateConfig | None = None
    init: InitConfig | None = None
    pack_pretrain: PackTextsConfig | None = None
    pretrain: PretrainConfig | None = None
    pack_finetune: PackGroupsConfig | None = None
    finetune: FinetuneConfig | None = None
    gate: GateConfig | None = None
    synthesize: SynthesizeConfig | None = None
    judge: JudgeConfig | None = None
    mine: MineConfig | None = None
    rerank: RerankConfig | None = None
    relabel: RelabelConfig | None = None
    select: SelectConfig | None = None
    pack_refine: PackGroupsConfig | None = None
    refine: FinetuneConfig | None = None
    reranker: RerankerConfig | None = None
    merge: MergeConfig | None = None
    evaluate: EvaluateConfig | None = None
    release: ReleaseConfig | None = None
    serve: ServeConfig | None = None

    def __post_init__(self) -> None:
        if self.stage is not None and self.stage not in (present := self.sections()):
            raise ValueError(f"`stage: {self.stage}` names no section of this config ({', '.join(present)})")

    def sections(self, verb: str | None = None) -> list[str]:
        """Returns the names of the stages that have a section, in the recipe's order; of one verb if given."""
        stages = [stage for stage in STAGES if verb in (None, stage.verb)]
        return [stage.name for stage in stages if getattr(self, stage.name) is not None]

    def default_stage(self, verb: str) -> str | None:
        """Returns the stage that a verb's job runs without `--stage`: the config's, its namesake, or its first.

        None if the config has no section for it.
        """
        present = self.sections(verb)
        return next((name for name in (self.stage, verb, *present) if name in present), None)


def require_models_of_own(recipe: RecipeConfig) -> None:
    """Refuses models that know the sample world where the recipe does not make it.

    On real pairs the sample's reranker scores four labelled positives of five below 0: they would become negatives.

    Raises:
        InputError: A section names one.
    """
    for name in recipe.sections() if recipe.sample is None else ():
        for ref, _ in refs(getattr(recipe, name)):
            if ref.startswith(f"{PACKAGE}sample/"):
                raise InputError(f"{name}: {ref}", "this model knows the sample world only, and that is not made here",
                                 "Give a model of your own (jobs/README.md, Queries by an LLM), or leave the section "
                                 "out")
