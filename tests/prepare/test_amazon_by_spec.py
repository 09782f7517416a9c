"""The paper's Amazon data by a spec of `prepare log` is that of `prepare amazon`."""

import gzip
import json
from pathlib import Path

import numpy as np

from din_jax import Store
from din_jax.data.store import SPLITS
from din_jax.prepare import amazon, log

SPEC = Path(__file__).parents[2] / "configs/data/amazon_paper.toml"


def samples(path):
    """{(split, user, length of the history, label): ad, category, history, …} in raw ids."""
    store = Store(path)
    column = store.column
    ids = {t.name: store.vocabulary(t.name).ids.to_list() for t in store.schema.tables}
    events = {
        name: [ids[name][row] for row in column(f"events/history/{name}")]
        for name in ("item", "category")
    }
    found = {}
    for split in SPLITS:
        for i in store.split(split):
            begin, end = (int(column(f"sequences/history.{side}")[i]) for side in ("start", "end"))
            user = ids["user"][column("fields/user_id")[i]]
            key = split, user, end - begin, int(column("samples/label")[i])
            found[key] = (
                ids["item"][column("fields/item")[i]],
                ids["category"][column("fields/category")[i]],
                events["item"][begin:end],
                events["category"][begin:end],
                column("events/history.time")[begin:end].tolist(),
                int(column("samples/time")[i]),
            )
    return found


def test_the_paper_s_data_by_a_spec_differ_in_the_draw_alone(tmp_path):
    rng = np.random.default_rng(0)
    goods, days = [f"B{i:03}" for i in range(40)], 86_400
    reviews = [  # few days, so that many reviews of a user are of one
        {"reviewerID": f"U{user}", "asin": good, "unixReviewTime": days * int(rng.integers(12))}
        for user in range(30)
        for good in rng.choice(goods, size=rng.integers(3, 15), replace=False).tolist()
    ]
    rng.shuffle(reviews)
    meta = [{"asin": g, "categories": [["X"], ["All", f"C{i % 6}"]]} for i, g in enumerate(goods)]
    files = tmp_path / "reviews_Electronics_5.json.gz", tmp_path / "meta_Electronics.json.gz"
    for file, lines in zip(files, (map(json.dumps, reviews), map(repr, meta)), strict=True):
        file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    amazon.prepare(*files, tmp_path / "amazon")
    log.prepare(SPEC, tmp_path / "log", data=tmp_path)
    expected, found = samples(tmp_path / "amazon"), samples(tmp_path / "log")
    assert found.keys() == expected.keys()
    taken = {(r["reviewerID"], r["asin"]) for r in reviews}
    for key, (ad, category, *history) in found.items():
        assert history == list(expected[key][2:])
        assert category == f"C{goods.index(ad) % 6}"
        _, user, _, label = key
        assert (user, ad) in taken if label else (user, ad) not in taken
        if label:
            assert ad == expected[key][0]
