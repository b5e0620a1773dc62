"""The merge stage averages models; the release stage exports one, reads it back in the three ways, then commits it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from chuxin.artifacts import Artifact, Attempt
from chuxin.errors import InputError
from chuxin.files import filesystem
from chuxin.lineage import ancestry
from chuxin.release.card import Described, Origin, render
from chuxin.release.config import MergeConfig, ReleaseConfig
from chuxin.runner import Context


def run(ctx: Context, config: ReleaseConfig) -> None:
    """Writes the artifact's file `model`: the release directory.

    Facts: how far each reader is from the training checkpoint (verify.py), and whether the heads are trained.
    """
    results = None if config.evaluation is None else _results(ctx, config.evaluation)
    task = partial(release, config, results, lineage(ctx.origins(config.model)))
    work = {"release": ctx.resolve(config.model)}
    ctx.draft.map(work, task, name="release", num_cpus=config.execution.num_cpus)


def release(
    config: ReleaseConfig,
    results: dict[str, Any] | None,
    origins: list[Origin],
    key: str,
    checkpoint: str,
    attempt: Attempt,
) -> None:
    """Writes and checks the release directory; runs on a worker."""
    from chuxin.models.checkpoint import load_model, load_tokenizer
    from chuxin.release.export import export
    from chuxin.release.verify import verify

    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    described = Described(
        config.name, config.license, model.backbone.config.num_hidden_layers, model.hidden,
        model.backbone.config.vocab_size, sum(p.numel() for p in model.backbone.parameters()), config.max_len,
        model.heads_trained,
    )  # fmt: skip
    card = render(described, results, origins)
    note = {"name": config.name, "origins": [o._asdict() for o in origins]}
    export(model, tokenizer, attempt.path("model"), config.max_len, card, note)
    facts = verify(checkpoint, attempt.path("model"), config.max_len)
    attempt.count(facts={**facts, "heads_trained": model.heads_trained})


def merge(ctx: Context, config: MergeConfig) -> None:
    """Writes the artifact's file `model`: the weighted mean of the models.

    Facts: how far the result is from each model, relative to that one's weights.
    """
    models = [(ctx.resolve(given.model), given.weight) for given in config.models]
    ctx.draft.map({"model": models}, merge_models, name="merge", num_cpus=config.execution.num_cpus)


def merge_models(key: str, models: list[tuple[str, float]], attempt: Attempt) -> None:
    """Writes the merged model; runs on a worker."""
    from chuxin.models.checkpoint import load_model, load_tokenizer, save_model
    from chuxin.release.merge import distance, merge

    merged = merge(models)
    save_model(merged, load_tokenizer(models[0][0]), attempt.path("model"))
    apart = [round(distance(merged, load_model(path)), 6) for path, _ in models]
    attempt.count(facts={"distances": apart, "heads_trained": merged.heads_trained})


def lineage(artifacts: Sequence[Artifact]) -> list[Origin]:
    """Returns artifacts and the stages behind them, inputs before what is made of them, each once.

    One that was taken from another workspace may be gone since: it is named, first, without what stood behind it.
    """
    found, gone = ancestry(artifacts)
    origins = [Origin(f"{uri.rpartition('/')[2]} (gone)", fingerprint, None, None) for fingerprint, uri in gone.items()]
    origins += [Origin(a.manifest["stage"], a.fingerprint, a.manifest["rows_in"], a.manifest["rows_out"])
                for a in found]  # fmt: skip
    return list({origin.fingerprint: origin for origin in origins}.values())


def _results(ctx: Context, ref: str) -> dict[str, Any]:
    path = ctx.inputs[ref].path("results.json") if ref in ctx.inputs else ctx.resolve(ref)
    fs, local = filesystem(path)
    try:
        return json.loads(fs.cat_file(local))
    except (OSError, ValueError) as error:
        raise InputError(path, "these are no results of an evaluation", "Give an evaluate stage") from error
