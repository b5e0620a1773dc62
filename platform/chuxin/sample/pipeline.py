"""The stage `sample`: writes the made world as one partition."""

from chuxin.runner import Context
from chuxin.sample.config import SampleConfig
from chuxin.sample.files import SIZES, write_world


def run(ctx: Context, config: SampleConfig) -> None:
    """Writes raw/, benchmarks/ and planted.json; rows out are documents and training pairs."""
    with ctx.draft.attempt("all") as attempt:
        counts = write_world(attempt.directory, config)
        attempt.count(
            rows_out=counts["documents"] + counts["pairs"],
            facts={
                "sizes": {name: counts[name] for name in SIZES},
                "planted": {name: n for name, n in counts.items() if name not in SIZES},
            },
        )
    ctx.log(f"{counts['documents']} documents, {counts['pairs']} pairs")
