"""Small MovieLens files with what is to be told apart: ties, duplicates, films without genres."""

import functools

import numpy as np

from din_jax.data.store import Store
from din_jax.prepare import movielens

USERS, FILMS = 60, 220
GENRES = ["Action", "Children's", "Comédie", "Drama", "Film-Noir", "Sci-Fi", "War"]
RARE_FILMS = 5  # films with a genre that no other film has


@functools.cache
def raw(users=USERS):
    """(user, film, rating, time) in the file's order, and {film: (title, genres)}.

    User 100 + u has u + 3 distinct ratings, so that their number identifies a user of a store.
    """
    rng = np.random.default_rng(3)
    popularity = 1 / np.arange(1, FILMS + 1)
    ratings = []
    for u in range(users):
        films = rng.choice(FILMS, size=u + 3, replace=False, p=popularity / popularity.sum())
        ratings += [
            (100 + u, 7 + 11 * int(f), rng.integers(1, 11) / 2, int(rng.integers(u + 3)) * 60)
            for f in films
        ]
    ratings = [ratings[i] for i in rng.permutation(len(ratings))]
    # Duplicate rows, one of them three times; the first of them counts in the order of ties.
    ratings += ratings[:200:5] + ratings[5:6]
    # The same film with another rating or at another time is no duplicate.
    ratings += [
        (100 + users, 7 + 11 * 40, stars, when) for stars in (3.5, 4.0, 4.5) for when in (9, 9, 8)
    ]
    ratings += [(100 + users, 7 + 11 * f, 1.0, 100 - f) for f in range(users - 3)]
    movies = {}
    for f in range(FILMS):
        genres = [GENRES[g] for g in rng.choice(len(GENRES), rng.integers(4), replace=False)]
        if f >= FILMS - RARE_FILMS:
            genres.append("Rare")
        movies[7 + 11 * f] = (f'Le "film" n° {f}, é: fin (1999)', genres)
    for f in (2, 30):  # rated, but not in the file
        del movies[7 + 11 * f]
    movies[5] = ("Never rated", ["Unseen"])
    return tuple(ratings), movies


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


def as_100k(ratings, movies, flags):
    """u.data and u.item; `flags` are all genres, in the order of u.item."""
    return (
        "".join(f"{u}\t{f}\t{stars(r)}\t{t}\n" for u, f, r, t in ratings),
        "".join(
            f"{f}|{t}|01-Jan-1995||http://x/?{f}|{'|'.join(str(int(n in g)) for n in flags)}\n"
            for f, (t, g) in movies.items()
        ),
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
