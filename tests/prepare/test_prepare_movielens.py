"""The MovieLens protocol against dictionaries, sorting and loops."""

import argparse
import collections
import gzip

import numpy as np
import pytest

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import lines, movielens

USERS, FILMS = 60, 220
GENRES = ["Action", "Children's", "Comédie", "Drama", "Film-Noir", "Sci-Fi", "War"]
FEW = 5  # films of a genre that only they have


def raw(seed=3):
    """(user, film, rating, time) in the file's order, and the (title, genres) of films.

    User 100 + u has u + 3 distinct ratings: by their number a user is known again in a store.
    """
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, FILMS + 1)
    ratings = []
    for u in range(USERS):
        films = rng.choice(FILMS, size=u + 3, replace=False, p=popularity / popularity.sum())
        ratings += [
            (100 + u, 7 + 11 * int(f), rng.integers(1, 11) / 2, int(rng.integers(u + 3)) * 60)
            for f in films
        ]
    ratings = [ratings[i] for i in rng.permutation(len(ratings))]
    # Rows that stand twice, one three times; the first of them keeps its place among its ties.
    ratings += ratings[:200:5] + ratings[5:6]
    # The same film again, with another rating or at another time, is no duplicate.
    ratings += [
        (100 + USERS, 7 + 11 * 40, stars, when) for stars in (3.5, 4.0, 4.5) for when in (9, 9, 8)
    ]
    ratings += [(100 + USERS, 7 + 11 * f, 1.0, 100 - f) for f in range(USERS - 3)]
    movies = {}
    for f in range(FILMS):
        genres = [GENRES[g] for g in rng.choice(len(GENRES), rng.integers(4), replace=False)]
        if f >= FILMS - FEW:
            genres.append("Rare")
        movies[7 + 11 * f] = (f'Le "film" n° {f}, é: fin (1999)', genres)
    for f in (2, 30):  # rated, but not in the file
        del movies[7 + 11 * f]
    movies[5] = ("Never rated", ["Unseen"])
    return ratings, movies


def stars(rating):
    return str(int(rating)) if rating == int(rating) else str(rating)


def joined(genres):
    return "|".join(genres) or "(no genres listed)"


def as_csv(ratings, movies):
    def quoted(title):
        return '"' + title.replace('"', '""') + '"'

    return (
        "userId,movieId,rating,timestamp\n"
        + "".join(f"{u},{f},{r},{t}\n" for u, f, r, t in ratings),
        "movieId,title,genres\n"
        + "".join(f"{f},{quoted(t)},{joined(g)}\n" for f, (t, g) in movies.items()),
    )


def as_dat(ratings, movies):
    return (
        "".join(f"{u}::{f}::{stars(r)}::{t}\n" for u, f, r, t in ratings),
        "".join(f"{f}::{t}::{joined(g)}\n" for f, (t, g) in movies.items()),
    )


def prepare(folder, content=None, **options):
    """Writes the raw files and prepares them; content is two byte strings."""
    folder.mkdir(exist_ok=True)
    if content is None:
        content = [text.encode() for text in as_csv(*raw())]
    for name, data in zip(("ratings", "movies"), content, strict=True):
        (folder / name).write_bytes(data)
    movielens.prepare(folder / "ratings", folder / "movies", folder / "store", **options)
    return Store(folder / "store")


def files_of(store, under=""):
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for path in (store.path / under).rglob("*")
        if path.is_file()
    }


def users_of(store):
    """{split: {index: raw user}}, known by their number of ratings."""
    number = collections.Counter(u for u, *_ in set(raw()[0]))
    raw_of = {n: u for u, n in number.items()}
    assert len(raw_of) == len(number)
    found = {}
    for split in SPLITS:
        samples = store.split(split)
        indices = store.column("samples/user")[samples.start : samples.stop].tolist()
        found[split] = {i: raw_of[n] for i, n in collections.Counter(indices).items()}
    return found


def samples_of(store, split, users):
    """{raw user: [(film, genres, label, history)]}; what is unknown is None."""
    films, genres = (store.vocabulary(name).ids.to_list() for name in ("film", "genre"))

    def entry(place, i):
        begin, end = store.column(f"{place}/genres.offsets")[i : i + 2].tolist()
        rows = store.column(f"{place}/genres")[begin:end].tolist()
        return films[int(store.column(f"{place}/film")[i])], [genres[row] for row in rows]

    found = collections.defaultdict(list)
    for i in store.split(split):
        start, end = (int(store.column(f"sequences/history.{s}")[i]) for s in ("start", "end"))
        found[users[int(store.column("samples/user")[i])]].append(
            (
                *entry("fields", i),
                int(store.column("samples/label")[i]),
                [entry("events/history", j) for j in range(start, end)],
            )
        )
    return found


def oracle(ties):
    """{raw user: [(film, label, films rated before)]} in time order."""
    ratings, _ = raw()
    of_user = collections.defaultdict(list)
    for user, film, rating, time in dict.fromkeys(ratings):
        of_user[user].append((film, rating, time))
    found = {}
    for user, mine in of_user.items():
        mine = sorted(mine, key=lambda one: one[2])
        found[user] = [
            (
                film,
                int(rating in (4.0, 4.5, 5.0)),
                [f for f, _, then in mine if then < time]
                if ties == "strict"
                else [f for f, _, _ in mine[:k]],
            )
            for k, (film, rating, time) in enumerate(mine)
        ]
    return found


@pytest.mark.parametrize("ties", movielens.TIES)
def test_samples_and_histories_are_those_of_loops(tmp_path, ties):
    store = prepare(tmp_path / "a", ties=ties)
    movies, users, expected = raw()[1], users_of(store), oracle(ties)
    films, genres = (set(store.vocabulary(name).ids) for name in ("film", "genre"))

    def entry(film):
        listed = movies.get(film, ("", []))[1]
        return (film if film in films else None), [g if g in genres else None for g in listed]

    for split in SPLITS:
        found = samples_of(store, split, users[split])
        for user, samples in found.items():
            assert samples == [
                (*entry(film), label, [entry(f) for f in history])
                for film, label, history in expected.pop(user)
            ]
    assert expected == {}


def test_users_are_split_and_stored_once(tmp_path):
    store = prepare(tmp_path / "a")
    users = users_of(store)
    # 61 users: 100,000 / 138,493 of them are 44.05, and 5 % of 44 are 2.2.
    assert [len(users[split]) for split in SPLITS] == [42, 2, 17]
    everyone = [user for split in SPLITS for user in users[split].values()]
    assert sorted(everyone) == list(range(100, 100 + USERS + 1))
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
    # The data has what is to be told apart: films and a genre that training does not hold.
    assert {film for _, film, *_ in ratings} - set(number)


def test_the_report_counts(tmp_path):
    store = prepare(tmp_path / "a", ties="strict")
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
    known = set(store.vocabulary("film").ids)
    for split, users in users_of(store).items():
        films = [film for user in users.values() for film, *_ in expected[user]]
        unknown = np.mean([film not in known for film in films])
        assert origin[f"{split}_users"] == len(users)
        assert origin[f"{split}_samples"] == len(films)
        assert origin[f"{split}_unknown_films"] == round(unknown, 6)
    assert origin["test_unknown_films"] > origin["train_unknown_films"] > 0


def test_the_command_prints_the_report(tmp_path, capsys):
    prepare(tmp_path / "a")
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    movielens.add_arguments(parser)
    a, b = tmp_path / "a", tmp_path / "b"
    words = ["--ratings", f"{a}/ratings", "--movies", f"{a}/movies", "--out", str(b)]
    movielens.run(parser.parse_args(words))
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["ratings_read"] == f"{len(raw()[0]):,}"
    assert printed["ties"] == "strict"
    assert files_of(Store(b)) == files_of(Store(a / "store"))


def layouts():
    csv, dat = as_csv(*raw()), as_dat(*raw())
    utf8 = [text.encode() for text in dat]
    yield "::, UTF-8", utf8
    yield "::, latin-1", [text.encode("latin-1") for text in dat]
    yield "::, gzip", [gzip.compress(data) for data in utf8]
    yield "csv, gzip", [gzip.compress(text.encode()) for text in csv]
    yield "csv, gzip and ::", [gzip.compress(csv[0].encode()), utf8[1]]
    yield "carriage returns", [text.replace("\n", "\r\n").encode() for text in csv]
    yield ":: with carriage returns", [text.replace("\n", "\r\n").encode() for text in dat]
    yield "byte order mark", [b"\xef\xbb\xbf" + text.encode() for text in csv]
    yield "no last line feed", [text.rstrip("\n").encode() for text in csv]
    yield "blank lines", [text.replace("\n", "\n\n").encode() + b" \n" for text in csv]
    yield "blank lines, returns", [text.replace("\n", "\r\n\r\n").encode() for text in csv]
    yield ":: with blank lines", [text.replace("\n", "\n\n").encode() for text in dat]


@pytest.mark.parametrize("content", [pytest.param(c, id=name) for name, c in layouts()])
def test_every_layout_gives_the_same_bytes(tmp_path, content, monkeypatch):
    expected = files_of(prepare(tmp_path / "expected"))
    assert files_of(prepare(tmp_path / "whole", content)) == expected
    monkeypatch.setattr(lines, "BLOCK_BYTES", 300)
    monkeypatch.setattr(movielens, "_AT_ONCE", 100)
    assert files_of(prepare(tmp_path / "in blocks", content)) == expected


def test_a_genre_is_taken_once_and_an_empty_one_not_at_all(tmp_path):
    ratings = b"".join(b"%d::1::4::0\n%d::2::4::1\n" % (user, user) for user in range(5))
    store = prepare(tmp_path / "a", (ratings, b"1::A::War| Drama||War|\n2::B::\n"))
    assert store.vocabulary("genre").ids.to_list() == [None, "Drama", "War"]
    assert store.column("fields/genres")[:4].tolist() == [2, 1, 2, 1]
    assert store.column("fields/genres.offsets").tolist() == [0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


def test_users_outside_train_change_no_vocabulary(tmp_path):
    ratings, movies = raw()
    store = prepare(tmp_path / "a")
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
    assert permuted != ratings
    content = [text.encode() for text in as_csv(permuted, movies)]
    again = prepare(tmp_path / "b", content)
    assert again.fingerprint != store.fingerprint
    assert files_of(again, "vocab") == files_of(store, "vocab")
    # Training itself is the same too.
    assert len(again.split("train")) == len(store.split("train"))
    train = slice(0, len(store.split("train")))
    for name in ("samples/label", "fields/film", "sequences/history.end"):
        assert (again.column(name)[train] == store.column(name)[train]).all()


def test_the_seed_decides_the_split(tmp_path):
    a, b, c = (prepare(tmp_path / name, seed=seed) for name, seed in (("a", 4), ("b", 4), ("c", 5)))
    assert files_of(a) == files_of(b)
    assert users_of(a)["test"] != users_of(c)["test"]
    assert a.origin["click_rate"] == c.origin["click_rate"]


RATINGS, MOVIES = (text.encode() for text in as_csv(*raw()))
RATINGS_DAT, MOVIES_DAT = (text.encode() for text in as_dat(*raw()))


def with_line(data, number, line):
    rows = data.split(b"\n")
    rows[number - 1] = line
    return b"\n".join(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((with_line(RATINGS, 9, b"1,2,3"), MOVIES), r"/ratings, line 9: '1,2,3' is not a rating"),
        (
            (with_line(RATINGS, 9, b"1,2,3,4,5"), MOVIES),
            r"line 9: '1,2,3,4,5' .*: it has 5 values, not 4",
        ),
        (
            (with_line(RATINGS, 2, b"1,x,3,4"), MOVIES),
            r"line 2: .* the movieId, 'x', is not a whole num",
        ),
        (
            (with_line(RATINGS, 7, b"1,2,3,4.5"), MOVIES),
            r"line 7: .* the timestamp, '4.5', is not a wh",
        ),
        (
            (with_line(RATINGS, 7, b"1,2,,4"), MOVIES),
            r"line 7: '1,2,,4' is not a rating: the rating, ''",
        ),
        ((with_line(RATINGS, 7, b"1,2,3," + b"9" * 19), MOVIES), r"ratings, line 7: .*9' is not"),
        (
            (with_line(RATINGS, 7, b"1,2,5.5,4"), MOVIES),
            r"line 7: .* the rating, '5.5', is not a num",
        ),
        (
            (with_line(RATINGS, 7, b"1,2,0,4"), MOVIES),
            r"line 7: .* '0', is not a number from 0.5 to 5",
        ),
        ((with_line(RATINGS, 7, b"1,2,nan,4"), MOVIES), r"line 7: '1,2,nan,4' is not"),
        ((with_line(RATINGS_DAT, 4, b"1::2::6::4"), MOVIES), r"line 4: .*expected userId::movieId"),
        ((with_line(RATINGS_DAT, 4, b"1::2,3::4"), MOVIES), r"line 4: '1::2,3::4' is not a rating"),
        ((with_line(RATINGS_DAT, 1, b"1::2::3"), MOVIES), r"line 1: '1::2::3' is not a rating"),
        (
            (with_line(RATINGS, 1, b"user,item,rating,ts"), MOVIES),
            r"ratings, line 1: found 'user,i",
        ),
        ((RATINGS.partition(b"\n")[2], MOVIES), r"ratings, line 1: found .*expected the header us"),
        ((RATINGS, with_line(MOVIES, 1, b"id,name")), r"movies, line 1: found 'id,name'.*movieId,"),
        ((RATINGS, with_line(MOVIES, 6, b"1,Toy Story")), r"/movies, line 6: '1,Toy Story' is not"),
        ((RATINGS, with_line(MOVIES, 6, b"1,A, B,War")), r"line 6: .* Put a title .* in quotes"),
        ((RATINGS, with_line(MOVIES, 6, b",,")), r"movies, line 6: ',,' is not a movie"),
        ((RATINGS, with_line(MOVIES, 6, b"x,Toy,War")), r"line 6: 'x,Toy,War' is not .* movieId,t"),
        ((RATINGS, with_line(MOVIES, 6, b'1,"Toy" x,War')), r"line 6: .* x,War' is not a movie"),
        ((RATINGS, with_line(MOVIES, 6, b'1,"Toy,War')), r"line 6: '1,\"Toy,War' is not a movie"),
        (
            (RATINGS, with_line(MOVIES_DAT, 6, b"1::Toy")),
            r"line 6: '1::Toy' is not .*movieId::titl",
        ),
        ((RATINGS, MOVIES + b"5,Again,War\n"), r"movies, line \d+: movie 5 stands a second time"),
        ((MOVIES, RATINGS), r"movies, line 1: found .*which is of ratings .are the two files swap"),
        ((MOVIES_DAT, RATINGS_DAT), r"movies, line 1: found .* of ratings .are the two files swap"),
        ((MOVIES, MOVIES), r"ratings, line 1: found 'movieId,title,genres', which is of movies"),
        ((MOVIES_DAT, MOVIES), r"ratings, line 1: found .*, which is of movies .are the two"),
        ((gzip.compress(RATINGS)[:-20], MOVIES), r"ratings: cut short or damaged"),
        ((RATINGS, gzip.compress(MOVIES)[:-20]), r"movies: cut short or damaged"),
        ((b"", MOVIES), r"ratings: empty; expected ratings"),
        ((RATINGS, b""), r"movies: empty; expected movies"),
        ((RATINGS.partition(b"\n")[0] + b"\n\n", MOVIES), r"ratings: no ratings in it"),
        ((RATINGS, MOVIES.partition(b"\n")[0]), r"movies: no movies in it"),
        ((b"1::7::4::0\n2::7::4::0\n", MOVIES), r"ratings: 2 users; expected 3 or more"),
        (
            (RATINGS, b"3::A::War\n"),
            r"lacks (\d+) of the \1 films of .*ratings, 7, 18, 29, .* both",
        ),
        (
            (RATINGS, "".join(MOVIES.decode().splitlines(True)[:90]).encode()),
            r"movies: lacks \d+ of the \d+ films of .* for instance; are both files of the same",
        ),
    ],
)
def test_bad_input_is_one_clear_error_and_no_store(tmp_path, content, message):
    with pytest.raises(DinError, match=message):
        prepare(tmp_path / "a", content)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["movies", "ratings"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "--seed -1: expected 0 or more"),
        ({"ties": "loose"}, "--ties 'loose': expected strict or file_order"),
        ({"unknown_share": 1.5}, "--unknown-share 1.5: expected 0 to 1"),
        ({"unknown_share": float("nan")}, "--unknown-share nan: expected 0 to 1"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(DinError, match=message):
        prepare(tmp_path / "a", **options)


def test_a_bad_line_is_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 200)
    with pytest.raises(DinError, match="line 777: 'oops' is not a rating"):
        prepare(tmp_path / "a", (with_line(RATINGS, 777, b"oops"), MOVIES))
    with pytest.raises(DinError, match="line 77: 'oops' is not a movie"):
        prepare(tmp_path / "b", (RATINGS, with_line(MOVIES, 77, b"oops")))


def test_a_missing_file_and_a_taken_place(tmp_path):
    for name, found in (("movies", "no such file"), (".", "is a folder")):
        with pytest.raises(DinError, match=f"{found}; expected the file movies.csv or movies.dat"):
            movielens.prepare(tmp_path / "ratings", tmp_path / name, tmp_path / "store")
    with pytest.raises(DinError, match="exists already"):
        movielens.prepare(tmp_path / "ratings", tmp_path / "movies", tmp_path)
