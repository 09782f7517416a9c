"""MovieLens ratings: does a user give a film 4 stars or more? With the paper's split by user.

Every rating is a sample: positive at 4 stars or more, negative below (section 6.1 of the paper).
Its history is the films that the user rated before, with their genres; the earlier ratings
themselves are not inputs. With `--histories by_rating` they are: there are two histories instead,
`liked` and `disliked`, of the films that the user gave 4 stars or more, and fewer.

Users are split at random. Of 138,493 users the paper trains on 100,000 and tests on the others; any
other number of users is split in this proportion. Of the training users 5 % are set aside for
validation; training on train+validation is the paper's protocol.

Timestamps are whole seconds, and many ratings share one: a user of MovieLens rates a page of films
at once. With `--ties strict` a history ends before the rating's second. With `--ties file_order` it
has all earlier ratings, and ratings of one second are ordered as in the file. That may reveal more
than was known at the time: the order of a page is not always the order in time.

The vocabularies are fitted on the ratings that training sees. A film that only other users rated is
row 0, "unknown". So is a random fraction of the films that training sees once, so that row 0 is
trained. The genres of an unknown film stay known.

The input is `ratings.csv` and `movies.csv` (ml-20m, ml-25m, ml-32m, ml-latest), `ratings.dat` and
`movies.dat` (ml-1m, ml-10m) or `u.data` and `u.item` (ml-100k), plain or gzipped; the layout is
detected from the content. So are `rating.csv` and `movie.csv`, Kaggle's edition of ml-20m.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data import vocabularies
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare.movielens_files import read_movies, read_ratings
from din_jax.prepare.origin import lines
from din_jax.prepare.own_history import own_history

TRAIN_FRACTION = 100_000 / 138_493  # of the users, validation included (section 6.1)
VALIDATION_FRACTION = 0.05  # of the training users
POSITIVE = 4.0  # stars
TIES = ("strict", "file_order")
HISTORIES = ("all", "by_rating")

_EVENTS_PER_WRITE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--ratings", required=True, help="ratings.csv, ratings.dat or u.data")
    parser.add_argument("--movies", required=True, help="movies.csv, movies.dat or u.item")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split and of the unknown films (default 0)"
    )
    parser.add_argument(
        "--ties",
        choices=TIES,
        default="strict",
        help="whether a history has earlier ratings of the same second (default strict: no)",
    )
    parser.add_argument(
        "--histories",
        choices=HISTORIES,
        default="all",
        help="all: one history of the films rated before (the default); by_rating: two, `liked` "
        "(4 stars or more) and `disliked` (fewer)",
    )
    parser.add_argument(
        "--unknown-share",
        type=float,
        default=vocabularies.UNKNOWN_SHARE,
        help="fraction of the training ratings to make unknown, of films rated once in training "
        "(default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    origin = prepare(
        arguments.ratings,
        arguments.movies,
        arguments.out,
        seed=arguments.seed,
        ties=arguments.ties,
        histories=arguments.histories,
        unknown_share=arguments.unknown_share,
    )
    for line in lines(origin):
        print(line)
    print(f"store written to {arguments.out}")


def prepare(
    ratings: str | Path,
    movies: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    ties: str = "strict",
    histories: str = "all",
    unknown_share: float = vocabularies.UNKNOWN_SHARE,
) -> dict[str, Any]:
    """Writes a store from the two raw files. Equal content gives equal stores, in any layout.

    Args:
      ratings: user, film, stars (0.5 to 5) and time in seconds. Duplicate rows, equal in all four,
        count once.
      movies: film, title, genres. A film that is missing here has no genres; up to half of the
        films may be missing.
      out: folder of the store.
      seed: of the split by user and of the films made unknown.
      ties: "strict": a history has the films that the user rated at an earlier second.
        "file_order": all earlier ratings, those of one second in the file's order.
      histories: "all": one sequence, `history`. "by_rating": two, `liked` (4 stars or more) and
        `disliked`.
      unknown_share: see `vocabularies.fit`.

    Returns:
      Counts, which are also written to the store as its origin. The lengths of histories are those
      of `liked` and `disliked` together.

    Raises:
      DinError: `out` exists; a file is missing, truncated, empty or of another layout; the files
        are swapped; a line is malformed; `movies` lacks most films; there are fewer than 3 users.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    if ties not in TIES:
        raise DinError(f"--ties {ties!r}: expected {' or '.join(TIES)}")
    if histories not in HISTORIES:
        raise DinError(f"--histories {histories!r}: expected {' or '.join(HISTORIES)}")
    if not 0 <= unknown_share <= 1:
        raise DinError(f"--unknown-share {unknown_share}: expected 0 to 1")
    rng = np.random.default_rng(seed)
    movie_of = read_movies(Path(movies))
    events = _read_events(Path(ratings), rng)
    n = len(events.user)
    genres = _encode_genres(events.films, {f: movie.genres for f, movie in movie_of.items()})
    missing = events.films.filter(pl.Series(~genres.listed))
    if 2 * len(missing) > len(events.films):
        raise DinError(
            f"{movies}: lacks {len(missing):,} of the {len(events.films):,} films of {ratings}, "
            f"for instance {_examples(missing)}; are both files of the same data set?"
        )

    # Users are in the order of the splits, so sample i is rating i.
    stops = dict(zip(SPLITS, np.searchsorted(events.user, events.user_stops).tolist(), strict=True))
    train_film = events.film[: stops["train"]]
    film = vocabularies.fit(events.films.gather(train_film), rng, unknown_share=unknown_share)
    film_row = film.rows(events.films)
    train_count = np.bincount(train_film, minlength=len(events.films))
    genre = vocabularies.fit(
        pl.Series(np.repeat(genres.values, train_count[genres.film])), rng, unknown_share=0
    )
    genre_row = genre.rows(pl.Series(genres.values))
    train_users = events.user_stops[0]

    first_event = np.searchsorted(events.user, np.arange(len(events.users)))  # of each user
    first = np.ones(n, bool)  # whether a rating is the first of its user and second
    first[1:] = (np.diff(events.user) != 0) | (np.diff(events.time) != 0)
    tied = ~first
    tied[:-1] |= tied[1:]
    end = np.arange(n)
    if ties == "strict":
        end = np.maximum.accumulate(np.where(first, end, 0))
    longest_history, mean_history = 0, 0.0
    positive = events.rating >= POSITIVE
    in_sequence = {"history": np.ones(n, bool)}  # whether each rating is an event of a sequence
    if histories == "by_rating":
        in_sequence = {"liked": positive, "disliked": ~positive}
    schema = _schema(len(film.ids) + 1, len(genre.ids) + 1, train_users + 1, list(in_sequence))
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    genre_entries = int((np.bincount(events.film) * genres.per_film).sum())
    genres_type, offset_type = smallest_unsigned(genre_entries), smallest_unsigned(n)
    user_type = smallest_unsigned(len(events.users) - 1)
    # How many events of a sequence come before each rating (n + 1 numbers).
    events_before = {name: np.zeros(n + 1, offset_type) for name in in_sequence}
    for name, chosen in in_sequence.items():
        np.cumsum(chosen, out=events_before[name][1:])
    ad = film_row[events.film].astype(id_type["film"])
    own = {
        name: own_history(positive, ad, before[first_event][events.user], before[end], ad[chosen])
        for (name, chosen), before in zip(in_sequence.items(), events_before.values(), strict=True)
    }
    notes = [note for name in own if (note := own[name].note(f"its own `{name}`"))]
    if events.duplicates:
        notes.append(
            f"{events.duplicates:,} of {n + events.duplicates:,} ratings are equal to an earlier "
            "one in user, film, stars and time, and do not count"
        )

    written = dict.fromkeys(["fields", *(f"events/{name}" for name in in_sequence)], 0)
    splits = dict(zip(SPLITS, itertools.pairwise([0, *stops.values()]), strict=True))
    with StoreWriter(out, schema) as writer:

        def append(group: str, films: np.ndarray) -> None:
            values, offsets = genres.gather(films, genre_row)
            writer.append(f"{group}/film", film_row[films].astype(id_type["film"]))
            writer.append(f"{group}/genres", values.astype(id_type["genre"]))
            writer.append(
                f"{group}/genres.offsets", (written[group] + offsets[1:]).astype(genres_type)
            )
            written[group] += len(values)

        for group in written:
            writer.append(f"{group}/genres.offsets", np.zeros(1, genres_type))
        for begin in range(0, n, _EVENTS_PER_WRITE):
            part = slice(begin, begin + _EVENTS_PER_WRITE)
            user, film_index = events.user[part], events.film[part]
            history_start = first_event[user]
            append("fields", film_index)
            writer.append("samples/label", positive[part].astype(np.uint8))
            writer.append("samples/user", user.astype(user_type))
            writer.append("samples/time", events.time[part])
            for name, chosen in in_sequence.items():
                append(f"events/{name}", film_index[chosen[part]])
                writer.append(f"events/{name}.time", events.time[part][chosen[part]])
                for key, rating in (("start", history_start), ("end", end[part])):
                    writer.append(f"sequences/{name}.{key}", events_before[name][rating])
            user_row = np.where(user < train_users, user + 1, 0)
            writer.append("fields/user_id", user_row.astype(id_type["user"]))
            lengths = end[part] - history_start
            mean_history += float(lengths.sum()) / n
            longest_history = max(longest_history, int(lengths.max()))
        writer.vocabulary("film", film.ids, film.counts)
        titles = [movie_of[f].title if f in movie_of else None for f in film.ids.to_list()]
        writer.titles("film", pl.Series("title", titles, dtype=pl.String))
        writer.vocabulary("genre", genres.names.gather(genre.ids), genre.counts)
        train_ratings = np.bincount(events.user[: stops["train"]], minlength=train_users)
        writer.vocabulary("user", events.users[:train_users], train_ratings)
        origin = {
            "preparation": "movielens",
            "seed": seed,
            "ties": ties,
            **({} if histories == "all" else {"histories": histories}),
            "unknown_share": unknown_share,
            "ratings_read": n + events.duplicates,
            "duplicate_ratings": events.duplicates,
            "users": len(events.users),
            "films": len(events.films),
            "films_not_in_movies": len(missing),
            "first_not_in_movies": _examples(missing),
            "films_without_genres": int((genres.per_film == 0).sum()),
            "films_known": len(film.ids),
            "films_made_unknown": film.left_out,
            "genres": len(genre.ids),
        }
        for split, (start, stop) in splits.items():
            origin[f"{split}_users"] = int(events.user[stop - 1] - events.user[start] + 1)
            origin[f"{split}_samples"] = stop - start
            unknown = (film_row[events.film[start:stop]] == 0).mean()
            origin[f"{split}_unknown_films"] = round(float(unknown), 6)
        origin |= {
            "click_rate": round(float(positive.mean()), 4),
            "share_tied": round(float(tied.mean()), 4),
            "mean_history": round(mean_history, 2),
            "longest_history": longest_history,
            **{f"ad_in_own_{name}": str(counts) for name, counts in own.items()},
            "notes": notes,
        }
        writer.finish(splits, origin)
    return origin


def _examples(ids: pl.Series) -> str:
    """Some ids, as a message lists them."""
    return ", ".join(map(str, ids.head(5))) or "none"


def _schema(films: int, genres: int, users: int, sequences: list[str]) -> Schema:
    return Schema(
        tables=(Table("film", films), Table("genre", genres), Table("user", users)),
        fields=(
            Field("user_id", "user", "user", optional=True),
            Field("film", "film", "ad"),
            Field("genres", "genre", "ad", multi_hot=True),
        ),
        sequences=tuple(
            Sequence(
                name,
                (
                    BehaviorField("film", "film", ad="film"),
                    BehaviorField("genres", "genre", ad="genres", multi_hot=True),
                ),
                times=True,
            )
            for name in sequences
        ),
    )


class _Events(NamedTuple):
    """All ratings, ordered by user and then by time."""

    user: np.ndarray  # index into users
    film: np.ndarray  # index into films
    rating: np.ndarray  # stars
    time: np.ndarray  # seconds
    users: pl.Series  # train's, then validation's, then test's; sorted within each split
    user_stops: list[int]  # where each split's users end
    films: pl.Series  # sorted
    duplicates: int  # number of rows left out


def _read_events(path: Path, rng: np.random.Generator) -> _Events:
    rows = read_ratings(path)
    ratings = _without_duplicates(rows)
    ids = ratings["userId"].unique().sort()
    if len(ids) < 3:
        raise DinError(
            f"{path}: {len(ids)} users; expected 3 or more, since train, validation and test each "
            "need users of their own"
        )
    train_users = round(TRAIN_FRACTION * len(ids))
    validation = max(1, round(VALIDATION_FRACTION * train_users))
    stops = [train_users - validation, train_users, len(ids)]
    shuffled = np.split(rng.permutation(len(ids)), stops[:-1])
    order = np.concatenate([np.sort(split) for split in shuffled])
    films = ratings["movieId"].unique().sort()
    ordered = ratings.select(
        pl.Series("user", np.argsort(order)[_index(ids, ratings["userId"])]),
        pl.Series("film", _index(films, ratings["movieId"])),
        "rating",
        "timestamp",
    ).sort("user", "timestamp", maintain_order=True)  # ties keep the file's order
    return _Events(
        user=ordered["user"].to_numpy(),
        film=ordered["film"].to_numpy(),
        rating=ordered["rating"].to_numpy(),
        time=ordered["timestamp"].to_numpy(),
        users=ids.gather(order),
        user_stops=stops,
        films=films,
        duplicates=len(rows) - len(ratings),
    )


def _index(ids: pl.Series, column: pl.Series) -> np.ndarray:
    """The index in `ids`, which are sorted, of each id of a column."""
    return np.searchsorted(ids.to_numpy(), column.to_numpy())


def _without_duplicates(ratings: pl.DataFrame) -> pl.DataFrame:
    """Leaves out every row that is equal to an earlier one.

    Few users rate a film twice, and hashing every row of ml-20m takes 3 GB: only rows whose pair of
    user and film occurs more than once are compared.
    """
    users, films = (ratings[name].unique().sort() for name in ("userId", "movieId"))
    pair = _index(users, ratings["userId"]) * len(films) + _index(films, ratings["movieId"])
    ordered = np.sort(pair)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return ratings
    candidates = np.flatnonzero(np.isin(pair, repeated))
    duplicate = ~ratings[candidates].select(pl.struct(pl.all()).is_first_distinct()).to_series()
    distinct = np.ones(len(ratings), bool)
    distinct[candidates[duplicate.to_numpy()]] = False
    return ratings.filter(pl.Series(distinct))


class _Genres(NamedTuple):
    """The genres of all films, concatenated."""

    names: pl.Series  # sorted
    values: np.ndarray  # indices into names
    film: np.ndarray  # the film of each value
    per_film: np.ndarray  # how many each film has
    listed: np.ndarray  # whether each film is in the file of movies

    def gather(self, films: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The concatenated genre rows, `row[value]`, of some films, and the offsets of each."""
        count = self.per_film[films]
        offsets = np.concatenate([[0], np.cumsum(count)])
        begin = np.cumsum(self.per_film) - self.per_film
        return row[np.repeat(begin[films] - offsets[:-1], count) + np.arange(offsets[-1])], offsets


def _encode_genres(films: pl.Series, genres_of_film: dict[int, list[str]]) -> _Genres:
    genres = [genres_of_film.get(film, []) for film in films]
    names = sorted({name for of_film in genres for name in of_film})
    index = {name: i for i, name in enumerate(names)}
    count = np.array([len(of_film) for of_film in genres])
    return _Genres(
        names=pl.Series("id", names, dtype=pl.String),
        values=np.array([index[name] for of_film in genres for name in of_film], np.uint32),
        film=np.repeat(np.arange(len(films)), count),
        per_film=count,
        listed=np.array([film in genres_of_film for film in films]),
    )
