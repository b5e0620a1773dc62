"""The passage store gives back what went in, by hash and by number, in any number of shards."""

from pathlib import Path

import numpy as np
import pytest

from chuxin.errors import InputError
from chuxin.ids import text_hash
from chuxin.search.postings import count_terms
from chuxin.search.store import Chunk, PassageStore, write_shard

TEXTS = [f"第{i}段文字" + "长" * (i % 5) for i in range(23)]
HASHES = np.array([text_hash(text) for text in TEXTS])
DENSE = np.random.default_rng(1).standard_normal((23, 4)).astype(np.float32)


def chunks(first: int, last: int, size: int) -> list[Chunk]:
    parts = [slice(start, min(start + size, last)) for start in range(first, last, size)]
    return [Chunk(TEXTS[part], DENSE[part], {"bm25": count_terms(TEXTS[part])}) for part in parts]


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    paths = []
    for name, first, last in (("a", 0, 15), ("b", 15, 16), ("c", 16, 23)):
        own = slice(first, last)
        paths.append(str(tmp_path / name))
        write_shard(paths[-1], np.arange(100 + first, 100 + last), HASHES[own], 4, chunks(first, last, 4), 8)
    return PassageStore(paths)


def test_texts_ids_and_vectors_come_back(store: PassageStore) -> None:
    assert store.passages == 23
    wanted = np.random.default_rng(2).integers(0, 23, 50)
    assert store.texts(HASHES[wanted]) == [TEXTS[i] for i in wanted]
    ids, hashes = store.at(wanted)
    assert ids.tolist() == (wanted + 100).tolist() and hashes.tolist() == HASHES[wanted].tolist()
    np.testing.assert_array_equal(store.vectors(wanted), DENSE[wanted].astype(np.float16).astype(np.float32))
    assert store.texts(np.zeros(0, np.int64)) == []
    with pytest.raises(InputError, match="text hash 5: the passage stands in no shard"):
        store.texts(np.array([HASHES[3], 5]))


def test_rows_of_hashes(store: PassageStore) -> None:
    assert store.shards[0].rows(HASHES).tolist() == [*range(15), *[-1] * 8]
    assert store.shards[1].rows(HASHES).tolist() == [-1] * 15 + [0] + [-1] * 7


def test_lists_are_cut_into_segments_of_bounded_rows(store: PassageStore) -> None:
    segments = store.shards[0].lists("bm25")
    assert [first for first, _ in segments] == [0, 8]
    key = count_terms(["第3"])[0]
    whole = count_terms(TEXTS[:15])
    frequency = sum(lists.frequency(key) for _, lists in segments)
    assert frequency.tolist() == [(whole[0] == k).sum() for k in key]
    assert [len(lists.length_P) for _, lists in segments] == [8, 7] and store.shards[0].lists("sparse") == []


@pytest.mark.parametrize("count", [5, 9])
def test_a_shard_of_another_number_of_passages_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(RuntimeError, match=rf"passages came for {count} ids"):
        write_shard(str(tmp_path / "x"), np.arange(count), HASHES[:count], 4, chunks(0, 7, 3), 8)
