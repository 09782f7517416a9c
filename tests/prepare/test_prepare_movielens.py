"""The MovieLens protocol against dictionaries, sorting and loops."""

import argparse
import collections
import functools

import numpy as np
import pytest
from movielens_data import USERS, as_csv, files_of, prepare, raw
from stores_as_requests import assert_requests_are_batches

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import movielens


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("movielens"))


def users_of(store):
    """{split: {index: raw user}}, identified by their number of ratings."""
    number = collections.Counter(u for u, *_ in set(raw()[0]))
    raw_of = {n: u for u, n in number.items()}
    assert len(raw_of) == len(number)
    users = {}
    for split in SPLITS:
        samples = store.split(split)
        indices = store.column("samples/user")[samples.start : samples.stop].tolist()
        users[split] = {i: raw_of[n] for i, n in collections.Counter(indices).items()}
    return users


def samples_of(store, split, users, sequence="history"):
    """{raw user: [(film, genres, label, history)]}; unknown ids are None."""
    films, genres = (store.vocabulary(name).ids.to_list() for name in ("film", "genre"))

    @functools.cache
    def column(name):
        return store.column(name).tolist()

    def entry(group, i):
        begin, end = column(f"{group}/genres.offsets")[i : i + 2]
        rows = column(f"{group}/genres")[begin:end]
        return films[column(f"{group}/film")[i]], [genres[row] for row in rows]

    samples = collections.defaultdict(list)
    for i in store.split(split):
        start, end = (column(f"sequences/{sequence}.{s}")[i] for s in ("start", "end"))
        samples[users[column("samples/user")[i]]].append(
            (
                *entry("fields", i),
                column("samples/label")[i],
                [entry(f"events/{sequence}", j) for j in range(start, end)],
            )
        )
    return samples


@functools.cache
def oracle(ties):
    """{raw user: [(film, label, films rated before)]} in time order."""
    of_user = collections.defaultdict(list)
    for user, film, rating, time in dict.fromkeys(raw()[0]):
        of_user[user].append((film, rating, time))
    samples = {}
    for user, ratings in of_user.items():
        ratings = sorted(ratings, key=lambda one: one[2])
        samples[user] = [
            (
                film,
                int(rating in (4.0, 4.5, 5.0)),
                [f for f, _, then in ratings if then < time]
                if ties == "strict"
                else [f for f, _, _ in ratings[:k]],
            )
            for k, (film, rating, time) in enumerate(ratings)
        ]
    return samples


def rated_before(ties, liked):
    """{raw user: films rated before with 4 stars or more, or with fewer}, in time order."""
    of_user = collections.defaultdict(list)
    for user, film, rating, time in dict.fromkeys(raw()[0]):
        of_user[user].append((film, rating, time))
    films = {}
    for user, ratings in of_user.items():
        ratings.sort(key=lambda one: one[2])
        films[user] = [
            [
                film
                for film, rating, then in (ratings if ties == "strict" else ratings[:k])
                if (rating in (4.0, 4.5, 5.0)) == liked and (then < now or ties == "file_order")
            ]
            for k, (_, _, now) in enumerate(ratings)
        ]
    return films


def timestamps_before(ties):
    """{raw user: the ages of the ratings before each}, in time order."""
    times = collections.defaultdict(list)
    for user, _, _, time in dict.fromkeys(raw()[0]):
        times[user].append(time)
    ages = {}
    for user, of_user in times.items():
        of_user.sort()
        ages[user] = [
            [now - then for then in of_user[:k] if then < now or ties == "file_order"]
            for k, now in enumerate(of_user)
        ]
    return ages


def entries(store):
    """film → (film, genres), as far as the store's vocabularies have them."""
    movies = raw()[1]
    films, genres = (set(store.vocabulary(name).ids) for name in ("film", "genre"))

    def entry(film):
        listed = movies.get(film, ("", []))[1]
        return (film if film in films else None), [g if g in genres else None for g in listed]

    return entry


@pytest.mark.parametrize("ties", movielens.TIES)
def test_samples_and_histories_are_those_of_loops(tmp_path, ties):
    store = prepare(tmp_path / "a", ties=ties)
    users, expected, entry = users_of(store), dict(oracle(ties)), entries(store)
    for split in SPLITS:
        for user, samples in samples_of(store, split, users[split]).items():
            assert samples == [
                (*entry(film), label, [entry(f) for f in history])
                for film, label, history in expected.pop(user)
            ]
    assert expected == {}


@pytest.mark.parametrize("ties", movielens.TIES)
def test_histories_by_rating_are_those_of_loops(store, tmp_path, monkeypatch, ties):
    monkeypatch.setattr(movielens, "_EVENTS_PER_WRITE", 100)
    by_rating = prepare(tmp_path / "a", ties=ties, histories="by_rating")
    entry = entries(by_rating)
    for sequence in ("liked", "disliked"):
        expected = rated_before(ties, sequence == "liked")
        for split, users in users_of(by_rating).items():
            for user, samples in samples_of(by_rating, split, users, sequence).items():
                assert [history for *_, history in samples] == [
                    [entry(film) for film in history] for history in expected.pop(user)
                ]
        assert expected == {}
    together, origin = dict(prepare(tmp_path / "b", ties=ties).origin), dict(by_rating.origin)
    del together["ad_in_own_history"], origin["ad_in_own_liked"], origin["ad_in_own_disliked"]
    assert origin == {**together, "histories": "by_rating"}
    # The samples are those of one history, and each event has its own time.
    for name in ("samples/label", "samples/time", "fields/film", "fields/genres"):
        np.testing.assert_array_equal(by_rating.column(name), store.column(name))
    times = [by_rating.column(f"events/{s}.time") for s in ("liked", "disliked")]
    assert sorted(np.concatenate(times)) == sorted(store.column("events/history.time"))
    liked = by_rating.column("samples/label") == 1
    np.testing.assert_array_equal(times[0], store.column("events/history.time")[liked])


def test_all_films_may_be_liked(tmp_path):
    ratings = b"".join(b"%d::1::4::0\n%d::2::5::1\n" % (user, user) for user in range(5))
    store = prepare(tmp_path / "a", (ratings, b"1::A::War\n2::B::\n"), histories="by_rating")
    assert store.column("sequences/liked.end").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len(store.column("events/disliked/film")) == 0
    assert (store.column("sequences/disliked.end") == 0).all()


def test_an_unknown_kind_of_histories_is_refused(tmp_path):
    with pytest.raises(DinError, match="--histories 'rated': expected all or by_rating"):
        prepare(tmp_path / "a", histories="rated")


@pytest.mark.parametrize("ties", movielens.TIES)
def test_ages_are_differences_of_timestamps(tmp_path, ties):
    store = prepare(tmp_path / "a", ties=ties)
    times, start, end = (
        store.column(name).tolist()
        for name in ("events/history.time", "sequences/history.start", "sequences/history.end")
    )
    now, user_of = store.column("samples/time").tolist(), store.column("samples/user").tolist()
    ages = collections.defaultdict(list)
    for split, users in users_of(store).items():
        for i in store.split(split):
            ages[users[user_of[i]]].append([now[i] - times[j] for j in range(start[i], end[i])])
    assert ages == timestamps_before(ties)
    least = min(age for samples in ages.values() for of_sample in samples for age in of_sample)
    assert least == (1 if ties == "strict" else 0)


def test_users_are_split_and_stored_once(store):
    users = users_of(store)
    # 61 users: 100,000 / 138,493 of them are 44.05, and 5 % of 44 are 2.2.
    assert [len(users[split]) for split in SPLITS] == [42, 2, 17]
    all_users = [user for split in SPLITS for user in users[split].values()]
    assert sorted(all_users) == list(range(100, 100 + USERS + 1))
    assert len(store.column("events/history/film")) == len(set(raw()[0])) == len(store)
    # The optional field: rows of train's users alone.
    vocabulary = store.vocabulary("user")
    assert vocabulary.ids.to_list() == [None, *sorted(users["train"].values())]
    number = collections.Counter(u for u, *_ in set(raw()[0]))
    assert vocabulary.counts.tolist()[1:] == [number[u] for u in vocabulary.ids.to_list()[1:]]
    for split in SPLITS:
        for i in store.split(split):
            user = users[split][int(store.column("samples/user")[i])]
            known = vocabulary.ids[int(store.column("fields/user_id")[i])]
            assert known == (user if split == "train" else None)


def test_the_papers_users(tmp_path):
    # Section 6.1: 138,493 users, of which 100,000 are to train on. One rating each.
    movies = b"1::A film::Drama\n"
    ratings = b"".join(b"%d::1::4::%d\n" % (user, user % 7) for user in range(138_493))
    store = prepare(tmp_path / "a", (ratings, movies))
    assert [len(store.split(split)) for split in SPLITS] == [95_000, 5_000, 38_493]
    assert len(store.split("train+validation")) == 100_000


@pytest.mark.parametrize("share", [0.0, 0.01, 0.004])
def test_vocabularies_are_of_train(tmp_path, share):
    store = prepare(tmp_path / "a", unknown_share=share)
    ratings, movies = raw()
    train = set(users_of(store)["train"].values())
    trained = [film for user, film, *_ in dict.fromkeys(ratings) if user in train]
    number = collections.Counter(trained)
    once = {film for film, n in number.items() if n == 1}
    films = store.vocabulary("film")
    known = films.ids.to_list()[1:]
    assert known == sorted(known)
    assert films.counts.tolist() == [0, *(number[film] for film in known)]
    left_out = set(number) - set(known)
    assert left_out <= once
    assert len(left_out) == min(round(share * len(trained)), len(once))
    assert share == 0 or left_out
    assert share != 0.004 or len(left_out) < len(once)
    genre = collections.Counter(g for film in trained for g in movies.get(film, ("", []))[1])
    vocabulary = store.vocabulary("genre")
    assert vocabulary.ids.to_list()[1:] == sorted(genre)
    assert vocabulary.counts.tolist()[1:] == [genre[name] for name in sorted(genre)]
    # The data has films that training lacks.
    assert {film for _, film, *_ in ratings} - set(number)


def test_the_origin_counts(store):
    ratings, movies = raw()
    distinct, expected = list(dict.fromkeys(ratings)), oracle("strict")
    moments = collections.Counter((user, time) for user, _, _, time in distinct)
    lengths = [len(history) for samples in expected.values() for *_, history in samples]
    rated = {film for _, film, *_ in ratings}
    origin = store.origin
    assert origin["ratings_read"] == len(ratings)
    assert origin["duplicate_ratings"] == len(ratings) - len(distinct) > 4
    assert origin["users"] == USERS + 1
    assert origin["films"] == len(rated)
    assert origin["films_not_in_movies"] == len(rated - set(movies)) == 2
    assert origin["first_not_in_movies"] == "29, 337"
    assert origin["films_without_genres"] == sum(not movies.get(f, ("", []))[1] for f in rated)
    assert origin["films_known"] == len(store.vocabulary("film").ids) - 1
    assert origin["genres"] == len(store.vocabulary("genre").ids) - 1
    assert origin["share_tied"] == round(
        sum(n for n in moments.values() if n > 1) / len(distinct), 4
    )
    assert origin["click_rate"] == round(np.mean([r >= 4 for _, _, r, _ in distinct]), 4)
    assert origin["mean_history"] == round(np.mean(lengths), 2)
    assert origin["longest_history"] == max(lengths)
    (note,) = origin["notes"]
    assert note.startswith(f"{origin['duplicate_ratings']} of {len(ratings):,} ratings are eq")
    known = set(store.vocabulary("film").ids)
    for split, users in users_of(store).items():
        films = [film for user in users.values() for film, *_ in expected[user]]
        unknown = np.mean([film not in known for film in films])
        assert origin[f"{split}_users"] == len(users)
        assert origin[f"{split}_samples"] == len(films)
        assert origin[f"{split}_unknown_films"] == round(unknown, 6)
    assert origin["test_unknown_films"] > origin["train_unknown_films"] > 0


def test_the_command_prints_the_origin(store, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    movielens.add_arguments(parser)
    folder = store.path.parent
    files = ["--ratings", f"{folder}/ratings", "--movies", f"{folder}/movies"]
    movielens.run(
        parser.parse_args([*files, "--out", f"{tmp_path}/two", "--histories", "by_rating"])
    )
    assert "histories                   by_rating" in capsys.readouterr().out
    movielens.run(parser.parse_args([*files, "--out", f"{tmp_path}/again"]))
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["ratings_read"] == f"{len(raw()[0]):,}"
    assert printed["ties"] == "strict"
    assert files_of(Store(tmp_path / "again")) == files_of(store)


def test_how_often_a_film_is_in_its_own_history(tmp_path):
    store = prepare(tmp_path / "a", ties="file_order", unknown_share=0)
    known = set(store.vocabulary("film").ids)
    samples = [s for of_user in oracle("file_order").values() for s in of_user if s[0] in known]
    shares = [
        np.sum([film in history[first:] for film, y, history in samples if y == label])
        / (store.column("samples/label") == label).sum()
        for first in (0, -1)
        for label in (1, 0)
    ]
    expected = "label 1 {:.1%}, label 0 {:.1%}; last behaviour: label 1 {:.1%}, label 0 {:.1%}"
    assert store.origin["ad_in_own_history"] == expected.format(*shares)
    assert min(shares) > 0.0005


def test_duplicate_and_empty_genres_are_left_out(tmp_path):
    ratings = b"".join(b"%d::1::4::0\n%d::2::4::1\n" % (user, user) for user in range(5))
    store = prepare(tmp_path / "a", (ratings, b"1::A::War| Drama||War|\n2::B::\n"))
    assert store.vocabulary("genre").ids.to_list() == [None, "Drama", "War"]
    assert store.column("fields/genres")[:4].tolist() == [2, 1, 2, 1]
    assert store.column("fields/genres.offsets").tolist() == [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


def test_users_outside_train_change_no_vocabulary(store, tmp_path):
    ratings, movies = raw()
    users = users_of(store)
    others = set(users["validation"].values()) | set(users["test"].values())
    rows = [i for i, (user, *_) in enumerate(ratings) if user in others]
    rng = np.random.default_rng(0)
    permuted = list(ratings)
    for column in (1, 2, 3):
        for i, j in zip(rows, rng.permutation(rows).tolist(), strict=True):
            row = list(permuted[i])
            row[column] = ratings[j][column]
            permuted[i] = tuple(row)
    permuted = [
        (user, 5 if user in others and film % 5 == 0 else film, rating, time)
        for user, film, rating, time in permuted
    ]
    assert permuted != list(ratings)
    content = [text.encode() for text in as_csv(permuted, movies)]
    again = prepare(tmp_path / "b", content)
    assert again.fingerprint != store.fingerprint
    assert files_of(again, "vocab") == files_of(store, "vocab")
    # Nor do they change the training split.
    assert len(again.split("train")) == len(store.split("train"))
    train = slice(0, len(store.split("train")))
    for name in ("samples/label", "fields/film", "sequences/history.end"):
        assert (again.column(name)[train] == store.column(name)[train]).all()


def test_the_seed_decides_the_split(store, tmp_path):
    again, other = prepare(tmp_path / "again", seed=0), prepare(tmp_path / "other", seed=1)
    assert files_of(again) == files_of(store)
    assert users_of(other)["test"] != users_of(store)["test"]
    assert other.origin["click_rate"] == store.origin["click_rate"]


def test_ratings_as_requests_have_the_batches_of_their_samples(store):
    assert_requests_are_batches(store, range(0, len(store), 97))
