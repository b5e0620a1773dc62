"""dedup.py against a dictionary."""

import random

import numpy as np

from chuxin.corpus.dedup import duplicates


def test_the_smallest_eligible_id_of_each_hash_stays() -> None:
    rng = random.Random(0)
    for size in (0, 1, 50, 500):
        hashes = [rng.randrange(size // 3 + 1) for _ in range(size)]
        ids = rng.sample(range(10 * size + 1), size)
        eligible = [rng.random() < 0.7 for _ in range(size)]
        first = {}
        for value, row, ok in zip(hashes, ids, eligible, strict=True):
            if ok:
                first[value] = min(first.get(value, row), row)
        expected = [ok and first[v] != i for v, i, ok in zip(hashes, ids, eligible, strict=True)]
        found = duplicates(np.array(hashes, np.int64), np.array(ids, np.int64), np.array(eligible, bool))
        assert found.tolist() == expected
