"""The stage `sample`: writes the made world as one partition."""

from chuxin.runner import Context
from chuxin.sample.config import SampleConfig
from chuxin.sample.files import write_world

_COUNTED_ELSEWHERE = ("documents", "pairs")


def run(ctx: Context, config: SampleConfig) -> None:
    """Writes raw/, benchmarks/ and planted.json; rows out are documents and training pairs."""
    with ctx.draft.attempt("all") as attempt:
        counts = write_world(attempt.directory, config)
        attempt.count(
            rows_out=sum(counts[name] for name in _COUNTED_ELSEWHERE),
            facts={"planted": {k: v for k, v in counts.items() if k not in _COUNTED_ELSEWHERE}},
        )
    ctx.log(f"{counts['documents']} documents, {counts['pairs']} pairs")
