"""How large the made world is and what is planted in it. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleConfig:
    """One world: the same values give the same bytes."""

    seed: int
    """Seed of every draw. Two worlds with different seeds share pools and wording, not entities or facts."""
    passages: int
    """Passages about training entities, rounded up to whole entities (6 to 12 passages each). A world of
    7,000 has about 2,800 documents and 6,500 training pairs in 5 MB; 2 k to millions are meant to work."""
    benchmark_passages: int
    """Passages in the corpus of each of the two benchmarks, rounded up to whole held-out entities."""
    benchmark_queries: int
    """Queries of each benchmark, at most one a passage."""
    pair_share: float = 0.85
    """Share of the passages for which a training query is written; a tenth of those get a second one."""
    paraphrase_share: float = 0.7
    """Share of the queries that use an alias and other words; the rest are keyword queries."""
    negatives_share: float = 0.4
    """Share of the training pairs that come with one to three given hard negatives."""
    planted_share: float = 0.02
    """Rate, per document, of each kind of planted fault in raw text (duplicates, mojibake, contents …)."""
    leaked_share: float = 0.05
    """Share of a benchmark's queries leaked to the training pairs by their query, as many again by their
    gold passage, and as many again by a raw document that holds the gold passage. At most a quarter."""
    malformed_lines: int = 6
    """Lines that are no valid record: half in the web pages, half in the pairs, in their first files."""
    documents_per_file: int = 250
    """Documents in a raw file; bounds the memory and the size of the files, not their number."""
    pairs_per_file: int = 2500
    """Training pairs in a file."""
