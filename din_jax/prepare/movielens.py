"""MovieLens ratings: does a user give a film 4 stars or more? By the paper's split over users.

Every rating is a sample: positive at 4 stars or more, negative below (section 6.1 of the paper).
Its history is the films that the user rated before, with their genres; what they were rated is no
input. Users are split at random: of 138,493 the paper trains on 100,000 and tests on the others,
and the same share is taken of any other number. Here 5 % of the users to train on are kept apart
for validation; training on train+validation is the paper's protocol.

Timestamps are whole seconds, and many ratings share one: a user of MovieLens rates a page of films
at once. With `--ties strict` a history ends before the rating's second. With `--ties file_order` it
holds all earlier ratings, those of one second in the file's order, which may say more than was
known: the order of a page is not always that of time.

The vocabularies are of the ratings that training sees. A film that only other users rated is row 0,
"unknown", and so is a seeded share of the films that training sees once, for row 0 to be trained.
Genres keep their own rows, those of an unknown film too.

Read are `ratings.csv` and `movies.csv` (as in ml-20m, ml-25m) and `ratings.dat` and `movies.dat`
(as in ml-1m, ml-10m), plain or gzipped; which, the content tells.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare import lines, vocabularies

TRAIN_SHARE = 100_000 / 138_493  # of the users, validation included (section 6.1)
VALIDATION_SHARE = 0.05  # of those
POSITIVE = 4.0  # stars
TIES = ("strict", "file_order")

_HEADERS = {"ratings": "userId,movieId,rating,timestamp", "movies": "movieId,title,genres"}
_COLUMNS = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float64, "timestamp": pl.Int64}
_NO_GENRES = "(no genres listed)"
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_AT_ONCE = 1 << 20  # events that are written together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--ratings", required=True, help="ratings.csv or ratings.dat of MovieLens")
    parser.add_argument("--movies", required=True, help="movies.csv or movies.dat of MovieLens")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split and of the unknown films (default 0)"
    )
    parser.add_argument(
        "--ties",
        choices=TIES,
        default="strict",
        help="whether ratings of the same second are history (default strict: they are not)",
    )
    parser.add_argument(
        "--unknown-share",
        type=float,
        default=vocabularies.UNKNOWN_SHARE,
        help="share of training's ratings that become unknown, of films seen once at most "
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
        unknown_share=arguments.unknown_share,
    )
    for name, value in origin.items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    print(f"store written to {arguments.out}")


def prepare(
    ratings: str | Path,
    movies: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    ties: str = "strict",
    unknown_share: float = vocabularies.UNKNOWN_SHARE,
) -> dict[str, Any]:
    """Makes a store from the two raw files. Equal content makes equal stores, whatever its layout.

    Args:
      ratings: user, film, stars (0.5 to 5) and time in seconds. A row that stands twice, all four
        alike, counts once.
      movies: film, title, genres. A film that is missing here has no genres; half of them may be.
      out: folder of the store.
      seed: of the split over users and of the films made unknown.
      ties: "strict": a history is what the user rated at an earlier second. "file_order": all
        earlier ratings, those of one second in the file's order.
      unknown_share: see `vocabularies.fit`.

    Returns:
      Counts, kept in the store as its origin.

    Raises:
      DinError: `out` exists; a file is missing, cut short, empty, of another layout, or they are
        swapped; a line is malformed; `movies` lacks most films; there are fewer than 3 users.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    if ties not in TIES:
        raise DinError(f"--ties {ties!r}: expected {' or '.join(TIES)}")
    if not 0 <= unknown_share <= 1:
        raise DinError(f"--unknown-share {unknown_share}: expected 0 to 1")
    rng = np.random.default_rng(seed)
    genres_of_film = _read_movies(Path(movies))
    events = _events(Path(ratings), rng)
    n = len(events.user)
    genres = _genres(events.films, genres_of_film)
    missing = events.films.filter(pl.Series(~genres.listed))
    if 2 * len(missing) > len(events.films):
        raise DinError(
            f"{movies}: lacks {len(missing):,} of the {len(events.films):,} films of {ratings}, "
            f"{_first(missing)} for instance; are both files of the same data set?"
        )

    # Users lie in the order of the splits, so samples are the events themselves, one after another.
    stops = dict(zip(SPLITS, np.searchsorted(events.user, events.user_stops).tolist(), strict=True))
    trained = events.film[: stops["train"]]
    film = vocabularies.fit(events.films.gather(trained), rng, unknown_share=unknown_share)
    film_row = film.rows(events.films)
    trained_count = np.bincount(trained, minlength=len(events.films))
    genre = vocabularies.fit(
        pl.Series(np.repeat(genres.values, trained_count[genres.film])), rng, unknown_share=0
    )
    genre_row = genre.rows(pl.Series(genres.values))
    train_users = events.user_stops[0]

    begin = np.searchsorted(events.user, np.arange(len(events.users)))
    first = np.ones(n, bool)  # of the ratings of a user and a second
    first[1:] = (np.diff(events.user) != 0) | (np.diff(events.time) != 0)
    tied = ~first
    tied[:-1] |= tied[1:]
    end = np.arange(n)
    if ties == "strict":
        end = np.maximum.accumulate(np.where(first, end, 0))
    longest, mean = 0, 0.0
    schema = _schema(len(film.ids) + 1, len(genre.ids) + 1, train_users + 1)
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    genres_in_all = int((np.bincount(events.film) * genres.per_film).sum())
    genres_type, offset_type = smallest_unsigned(genres_in_all), smallest_unsigned(n)
    user_type = smallest_unsigned(len(events.users) - 1)

    written = 0  # genres
    splits = dict(zip(SPLITS, itertools.pairwise([0, *stops.values()]), strict=True))
    with StoreWriter(out, schema) as writer:
        for name in ("fields/genres", "events/history/genres"):
            writer.append(f"{name}.offsets", np.zeros(1, genres_type))
        for at in range(0, n, _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            user, code = events.user[part], events.film[part]
            values, offsets = genres.of(code, genre_row)
            history_start = begin[user]
            for place in ("fields", "events/history"):
                writer.append(f"{place}/film", film_row[code].astype(id_type["film"]))
                writer.append(f"{place}/genres", values.astype(id_type["genre"]))
                writer.append(
                    f"{place}/genres.offsets", (written + offsets[1:]).astype(genres_type)
                )
            written += len(values)
            writer.append("samples/label", (events.rating[part] >= POSITIVE).astype(np.uint8))
            writer.append("samples/user", user.astype(user_type))
            known = np.where(user < train_users, user + 1, 0)
            writer.append("fields/user_id", known.astype(id_type["user"]))
            writer.append("sequences/history.start", history_start.astype(offset_type))
            writer.append("sequences/history.end", end[part].astype(offset_type))
            lengths = end[part] - history_start
            mean += float(lengths.sum()) / n
            longest = max(longest, int(lengths.max()))
        writer.vocabulary("film", film.ids, film.counts)
        writer.vocabulary("genre", genres.names.gather(genre.ids), genre.counts)
        train_ratings = np.bincount(events.user[: stops["train"]], minlength=train_users)
        writer.vocabulary("user", events.users[:train_users], train_ratings)
        origin = {
            "preparation": "movielens",
            "seed": seed,
            "ties": ties,
            "unknown_share": unknown_share,
            "ratings_read": n + events.duplicates,
            "duplicate_ratings": events.duplicates,
            "users": len(events.users),
            "films": len(events.films),
            "films_not_in_movies": len(missing),
            "first_not_in_movies": _first(missing),
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
            "click_rate": round(float((events.rating >= POSITIVE).mean()), 4),
            "share_tied": round(float(tied.mean()), 4),
            "mean_history": round(mean, 2),
            "longest_history": longest,
        }
        writer.finish(splits, origin)
    return origin


def _first(ids: pl.Series) -> str:
    """Some ids, for a reader."""
    return ", ".join(map(str, ids.head(5))) or "none"


def _schema(films: int, genres: int, users: int) -> Schema:
    return Schema(
        tables=(Table("film", films), Table("genre", genres), Table("user", users)),
        fields=(
            Field("user_id", "user", "user", optional=True),
            Field("film", "film", "ad"),
            Field("genres", "genre", "ad", multi_hot=True),
        ),
        sequences=(
            Sequence(
                "history",
                (
                    BehaviorField("film", "film", ad="film"),
                    BehaviorField("genres", "genre", ad="genres", multi_hot=True),
                ),
            ),
        ),
    )


class _Events(NamedTuple):
    """All ratings, users one after the other, in time order."""

    user: np.ndarray  # index into users
    film: np.ndarray  # index into films
    rating: np.ndarray  # stars
    time: np.ndarray  # seconds
    users: pl.Series  # those of train first, then of validation, then of test; sorted in each
    user_stops: list[int]  # where each split's users end
    films: pl.Series  # sorted
    duplicates: int  # rows left out


def _events(path: Path, rng: np.random.Generator) -> _Events:
    read = _read_ratings(path)
    kept = _without_duplicates(read)
    ids = kept["userId"].unique().sort()
    if len(ids) < 3:
        raise DinError(
            f"{path}: {len(ids)} users; expected 3 or more, since train, validation and test have "
            "users of their own"
        )
    fitted = round(TRAIN_SHARE * len(ids))
    validation = max(1, round(VALIDATION_SHARE * fitted))
    stops = [fitted - validation, fitted, len(ids)]
    drawn = np.split(rng.permutation(len(ids)), stops[:-1])
    order = np.concatenate([np.sort(split) for split in drawn])
    films = kept["movieId"].unique().sort()
    ordered = kept.select(
        pl.Series("user", np.argsort(order)[_index(ids, kept["userId"])]),
        pl.Series("film", _index(films, kept["movieId"])),
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
        duplicates=len(read) - len(kept),
    )


def _index(ids: pl.Series, column: pl.Series) -> np.ndarray:
    """The place in `ids`, sorted, of each id of a column."""
    return np.searchsorted(ids.to_numpy(), column.to_numpy())


def _without_duplicates(ratings: pl.DataFrame) -> pl.DataFrame:
    """The first of the rows that are alike.

    Few users rate a film twice, and to hash every row takes 3 GB at the size of ml-20m: only rows
    whose user and film stand twice are compared.
    """
    users, films = (ratings[name].unique().sort() for name in ("userId", "movieId"))
    pair = _index(users, ratings["userId"]) * len(films) + _index(films, ratings["movieId"])
    ordered = np.sort(pair)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return ratings
    suspect = np.flatnonzero(np.isin(pair, twice))
    again = ~ratings[suspect].select(pl.struct(pl.all()).is_first_distinct()).to_series()
    kept = np.ones(len(ratings), bool)
    kept[suspect[again.to_numpy()]] = False
    return ratings.filter(pl.Series(kept))


class _Genres(NamedTuple):
    """The genres of films, film after film."""

    names: pl.Series  # sorted
    values: np.ndarray  # indices into names
    film: np.ndarray  # of each value
    per_film: np.ndarray  # how many each film has
    listed: np.ndarray  # of each film, whether it was in the file of movies

    def of(self, films: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of some films, end to end: `row` of each of `values`, and where each film's begin."""
        count = self.per_film[films]
        offsets = np.concatenate([[0], np.cumsum(count)])
        begin = np.cumsum(self.per_film) - self.per_film
        return row[np.repeat(begin[films] - offsets[:-1], count) + np.arange(offsets[-1])], offsets


def _genres(films: pl.Series, genres_of_film: dict[int, list[str]]) -> _Genres:
    genres = [genres_of_film.get(film, []) for film in films]
    names = sorted({name for one in genres for name in one})
    index = {name: i for i, name in enumerate(names)}
    count = np.array([len(one) for one in genres])
    return _Genres(
        names=pl.Series("id", names, dtype=pl.String),
        values=np.array([index[name] for one in genres for name in one], np.uint32),
        film=np.repeat(np.arange(len(films)), count),
        per_film=count,
        listed=np.array([film in genres_of_film for film in films]),
    )


def _read_ratings(path: Path) -> pl.DataFrame:
    separator, blocks = _opened(path, "ratings")
    frames = []
    for first_line, block in blocks:
        frame = _parsed(block, separator)
        if frame is None:
            whole = _without_blank_lines(path, first_line, block, separator)
            frame = _parsed(whole, separator) if whole else pl.DataFrame(schema=_COLUMNS)
        if frame is None:
            raise DinError(
                f"{path}, a line from {first_line} on: can't be read; expected UTF-8 and a line "
                "feed after each line"
            )
        frames.append(frame)
    if not sum(map(len, frames)):
        raise DinError(f"{path}: no ratings in it")
    return pl.concat(frames)


def _parsed(block: bytes, separator: str) -> pl.DataFrame | None:
    """The ratings of some lines; None unless every line is one."""
    if separator == "::":
        if b"," in block:
            return None
        block = block.replace(b"::", b",")
    try:
        frame = pl.read_csv(io.BytesIO(block), has_header=False, schema=_COLUMNS, quote_char=None)
    except pl.exceptions.PolarsError:
        return None
    whole = frame.null_count().sum_horizontal()[0] == 0
    return frame if whole and frame["rating"].is_between(0.5, 5).all() else None


def _without_blank_lines(path: Path, first_line: int, block: bytes, separator: str) -> bytes:
    """Raises at the first line that is no rating; blank lines are passed over."""
    kept = []
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        wrong = _what_is_wrong(line.decode("utf-8", "replace").rstrip("\r").split(separator))
        if wrong:
            expected = separator.join(_HEADERS["ratings"].split(","))
            raise DinError(
                f"{path}, line {number}: {lines.shown(line)} is not a rating: {wrong}; expected "
                f"{expected}. Mend or delete the line"
            )
        kept.append(line)
    return b"\n".join(kept)


def _what_is_wrong(fields: list[str]) -> str:
    """What keeps these fields from being a rating; "" if nothing does."""
    if len(fields) != len(_COLUMNS):
        return f"it has {len(fields)} values, not {len(_COLUMNS)}"
    for (name, dtype), text in zip(_COLUMNS.items(), fields, strict=True):
        if dtype == pl.Int64 and not _is_whole(text):
            return f"the {name}, {text!r}, is not a whole number"
        if dtype == pl.Float64 and not (_NUMBER.fullmatch(text) and 0.5 <= float(text) <= 5):
            return f"the {name}, {text!r}, is not a number from 0.5 to 5"
    return ""


def _is_whole(text: str) -> bool:
    return bool(_WHOLE.fullmatch(text)) and -(2**63) <= int(text) < 2**63


def _read_movies(path: Path) -> dict[int, list[str]]:
    """The genres of each film, each once, in the file's order."""
    separator, blocks = _opened(path, "movies")
    first_line, data = 1, b""
    for number, block in blocks:
        first_line = first_line if data else number
        data += block
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # as ml-1m is
    rows = text.split("\n")
    genres_of_film: dict[int, list[str]] = {}
    for number, fields in _quoted(text) if separator == "," else _colons(rows):
        where = f"{path}, line {first_line + number}"
        if len(fields) != 3 or not _is_whole(fields[0]):
            expected = separator.join(_HEADERS["movies"].split(","))
            split = separator == "," and len(fields) > 3
            mend = (
                "Put a title that holds a comma in quotes" if split else "Mend or delete the line"
            )
            raise DinError(
                f"{where}: {lines.shown(rows[number].encode())} is not a movie; expected {expected}"
                f", the first a whole number. {mend}"
            )
        film, genres = int(fields[0]), fields[2].strip()
        if film in genres_of_film:
            raise DinError(f"{where}: movie {film} stands a second time; delete one of its lines")
        names = [] if genres == _NO_GENRES else [name.strip() for name in genres.split("|")]
        genres_of_film[film] = [*dict.fromkeys(filter(None, names))]
    if not genres_of_film:
        raise DinError(f"{path}: no movies in it")
    return genres_of_film


def _quoted(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line from 0, its fields or none if its quotes are wrong) of lines with quoted titles."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield number, []
            return
        if len(fields) > 1 or "".join(fields).strip():
            yield number, fields


def _colons(rows: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The same of lines split by `::`, which a title may hold."""
    for number, row in enumerate(rows):
        film, first, rest = row.partition("::")
        title, last, genres = rest.rpartition("::")
        if row.strip():
            yield number, [film, title, genres] if first and last else []


def _opened(path: Path, wanted: str) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """The separator of a file, and its blocks of lines after the header if it has one."""
    if not path.is_file():
        raise DinError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected the file "
            f"{wanted}.csv or {wanted}.dat of a MovieLens data set, "
            "https://grouplens.org/datasets/movielens"
        )
    blocks = lines.blocks(path)
    first_line, block = next(blocks, (1, b""))
    if not block:
        raise DinError(f"{path}: empty; expected {wanted}")
    block = block.removeprefix(b"\xef\xbb\xbf")
    head, _, rest = block.partition(b"\n")
    found, separator = _layout(head.decode("utf-8", "replace").strip())
    if found != wanted:
        raise DinError(
            f"{path}, line 1: found {lines.shown(head)}"
            + (f", which is of {found} (are the two files swapped?)" if found else "")
            + f"; expected the header {_HEADERS[wanted]}, or fields split by :: as in ml-1m"
        )
    here = (first_line, block) if separator == "::" else (first_line + 1, rest)
    return separator, itertools.chain([here] if here[1] else [], blocks)


def _layout(head: str) -> tuple[str | None, str]:
    """What a file with this first line holds (None: neither), and its separator."""
    for what, header in _HEADERS.items():
        if head == header:
            return what, ","
    _, found, last = head.rpartition("::")
    if not found:
        return None, ""
    return "ratings" if _is_whole(last) else "movies", "::"  # a time, or genres
