"""What each node finds wrong with its own data, by itself."""

import numpy as np
import pytest

from snake_jax.data.images.dataset import Split, make_dataset
from snake_jax.data.images.quality import clean, clean_nodes
from snake_jax.data.images.sources import load_dataset
from snake_jax.data.node_quality import NodeQuality, consistent, said, table
from snake_jax.data.partition import iid
from snake_jax.data.text.packing import Example
from snake_jax.data.text.quality import clean_texts, is_readable
from snake_jax.data.text.samples import Document, Pair
from snake_jax.errors import UserError


def planted():
    """60 images over three nodes: a missing value, and copies on one node and on another."""
    rng = np.random.default_rng(0)
    images = rng.random((60, 4, 4, 3), np.float32)
    labels = (np.arange(60) % 3).astype(np.int32)
    images[3, 1, 1, 0] = np.nan
    images[4] = images[3]
    images[7] = images[10]  # label 1 both
    images[8] = images[10]  # label 2 against 1
    images[25] = images[10]  # on another node
    test = Split(rng.random((10, 4, 4, 3), np.float32), (np.arange(10) % 3).astype(np.int32))
    shards = [np.arange(start, start + 20, dtype=np.int32) for start in (0, 20, 40)]
    return make_dataset("planted", Split(images, labels), test), shards


def test_a_node_drops_missing_values_and_repetitions_of_its_own_and_sees_no_other_node():
    dataset, shards = planted()
    kept, own, found = clean_nodes(dataset, shards)
    dropped = [
        {kind: count for kind, count in quality.dropped.items() if count} for quality in found
    ]
    assert dropped == [
        {"with missing values": 2, "repeated": 1, "repeated with another label": 1},
        {},
        {},
    ]
    assert [len(shard) for shard in own] == [16, 20, 20]
    # The copy at node 1 stays, which one who sees all the data would drop.
    assert len(clean(dataset)[0].train.labels) == 55
    gone = np.delete(np.arange(60), [3, 4, 8, 10])
    assert np.array_equal(kept.train.images, dataset.train.images[gone])
    for before, after in zip(shards, own, strict=True):
        still = [index for index in before if index in gone]
        assert np.array_equal(kept.train.images[after], dataset.train.images[still])
    assert np.allclose(kept.mean, dataset.train.images[gone].mean((0, 1, 2), np.float64) / 1)
    assert found[0].dropped_share == pytest.approx(0.2)
    assert "node 0 kept 16 of 20: dropped 2 with missing values, 1 repeated, 1 repeat" in table(
        found
    )


def test_sound_data_is_left_as_it_is_whoever_cleans():
    dataset = load_dataset("digits")
    shards = iid(dataset.train.labels, 9, 0)
    kept, own, found = clean_nodes(dataset, shards)
    together, _ = clean(dataset)
    assert kept.train.images is dataset.train.images
    assert np.array_equal(together.train.images, kept.train.images)
    assert (kept.mean, kept.std) == (together.mean, together.std)
    assert all(np.array_equal(*pair) for pair in zip(shards, own, strict=True))
    assert table(found) == "quality, each node by itself: kept 1437 of 1437 examples"


def test_a_node_that_is_left_with_nothing_is_named():
    dataset, shards = planted()
    dataset.train.images[20:40] = np.nan
    with pytest.raises(UserError, match="planted: the quality step leaves node 1 no example"):
        clean_nodes(dataset, shards)


def groups(rng):
    """Two groups of 40 and 20 in ten dimensions, a pair far from both, and one farther still."""
    one = rng.normal(0, 1, (40, 10))
    other = rng.normal(20, 1, (20, 10))
    pair = rng.normal(-60, 0.1, (2, 10))
    return np.concatenate([one, other, pair, np.full((1, 10), 200.0)])


@pytest.mark.parametrize("node", range(5))
def test_clusters_are_the_similarities_and_what_is_far_from_all_is_inconsistent(node):
    features = groups(np.random.default_rng(node))
    is_kept, sizes = consistent(features, outliers=3 / 63, clusters=4, seed=0, node=node)
    assert not is_kept[60:].any()
    assert is_kept[:60].all()
    assert sum(sizes) == 63
    again, _ = consistent(features, outliers=3 / 63, clusters=4, seed=0, node=node)
    assert np.array_equal(is_kept, again)


def test_clusters_alone_drop_nothing_and_are_told():
    is_kept, sizes = consistent(groups(np.random.default_rng(1))[:60], 0.0, 2, seed=0, node=0)
    assert is_kept.all()
    assert sizes == (40, 20)
    assert said(NodeQuality(60, {}, sizes)) == "clusters of 40, 20"
    # Where all are alike there is no second group to find.
    assert consistent(np.ones((9, 3)), 0.0, 4, seed=0, node=0)[1] == (9,)


def test_outliers_of_a_node_are_sought_among_its_own_images():
    dataset = load_dataset("digits")
    shard, other, *_ = iid(dataset.train.labels, 9, 0)
    images = dataset.train.images.copy()
    odd = 255 - images[shard[:3]]
    images[shard[:3]] = odd
    dataset = dataset._replace(train=dataset.train._replace(images=images))
    kept, (own,), (quality,) = clean_nodes(dataset, [shard], outliers=0.05, clusters=10)
    assert quality.dropped["outliers"] == 160 - len(own) == 8
    assert sum(quality.clusters) == 160
    left = {image.tobytes() for image in kept.train.images[own]}
    assert not any(image.tobytes() in left for image in odd)

    # Whatever lies on other nodes. An isolation forest drops as many, and on so few misses them.
    _, (beside, _), _ = clean_nodes(dataset, [shard, other], outliers=0.05, clusters=10)
    assert len(beside) == len(own)
    kept, (own,), (by_forest,) = clean_nodes(dataset, [shard], outliers=0.05)
    assert by_forest.dropped["outliers"] == 8
    left = {image.tobytes() for image in kept.train.images[own]}
    assert any(image.tobytes() in left for image in odd)


# Texts


def example(text):
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return Example(ids, np.ones(len(ids), bool))


def cleaned(samples, **flags):
    examples = [example(str(sample[:-1])) for sample in samples]
    flags = {"outliers": 0.0, "clusters": 0, "seed": 0, "node": 0, **flags}
    return clean_texts(samples, examples, **flags)


def test_a_node_drops_empty_repeated_and_non_text_samples_of_its_own():
    samples = [
        Pair("one", "eins"),
        Pair("one", "eins", "another category"),
        Pair("one", "uno"),
        Pair("two", " \u200b\ufeff\n"),
        Pair("three", "\x00\x01\x7f\x02bytes"),
        Document("\ufffd\ufffd half of \ufffd\ufffd\ufffd\ufffd"),
        Document("tabs\tand\nlines are text"),
    ]
    is_kept, quality = cleaned(samples)
    assert is_kept.tolist() == [True, False, True, False, False, False, True]
    assert quality == NodeQuality(7, {"empty": 1, "non-text": 2, "repeated": 1, "outliers": 0}, ())


@pytest.mark.parametrize(
    "text",
    [
        "Größe: 3 µm ≤ x",
        "漢字かな交じり文",
        "مرحبا بالعالم",
        "def f(x):\n\treturn x\r\n",
        "👩‍👩‍👧 ok",
        "1 + 1 = 2",
    ],
)
def test_text_of_every_script_is_text(text):
    assert is_readable(text)


def test_a_text_that_is_unlike_the_node_s_others_is_an_outlier():
    samples = [Pair(f"what is {n}?", f"it is {n}") for n in range(30)]
    samples += [Pair("QQQQQQQQQQQQ", "ZZZZZZZZZZZZ")]
    for clusters in (0, 2):
        is_kept, quality = cleaned(samples, outliers=1 / 31, clusters=clusters)
        assert not is_kept[30]
        assert quality.dropped["outliers"] == 1
