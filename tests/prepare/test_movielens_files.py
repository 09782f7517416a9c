"""MovieLens files: every layout gives an equal store; each error names the file and the line."""

import datetime
import gzip

import pytest
from movielens_data import as_100k, as_csv, as_dat, files_of, prepare, raw

from din_jax.errors import DinError
from din_jax.prepare import movielens, text_files

CSV, DAT = as_csv(*raw(users=20)), as_dat(*raw(users=20))


def as_kaggle(ratings, movies):
    """Names and times in quotes, and times as dates."""

    def quoted(header):
        return ",".join(f'"{name}"' for name in header.split(","))

    head, *rows = ratings.splitlines()
    rows = [row.rpartition(",") for row in rows]
    dates = [datetime.datetime.fromtimestamp(int(row[2]), datetime.UTC) for row in rows]
    lines = [f'{row[0]},"{date:%Y-%m-%d %H:%M:%S}"' for row, date in zip(rows, dates, strict=True)]
    first, _, rest = movies.partition("\n")
    return "\n".join([quoted(head), *lines, ""]), f"{quoted(first)}\n{rest}"


def layouts():
    utf8 = [text.encode() for text in DAT]
    yield "::, UTF-8", utf8
    yield "::, latin-1", [text.encode("latin-1") for text in DAT]
    yield "::, gzip", [gzip.compress(data) for data in utf8]
    yield "csv, gzip", [gzip.compress(text.encode()) for text in CSV]
    yield "csv, gzip and ::", [gzip.compress(CSV[0].encode()), utf8[1]]
    yield "carriage returns", [text.replace("\n", "\r\n").encode() for text in CSV]
    yield ":: with carriage returns", [text.replace("\n", "\r\n").encode() for text in DAT]
    yield "byte order mark", [b"\xef\xbb\xbf" + text.encode() for text in CSV]
    yield "Kaggle", [text.encode() for text in as_kaggle(*CSV)]
    yield "no last line feed", [text.rstrip("\n").encode() for text in CSV]
    yield "blank lines", [text.replace("\n", "\n\n").encode() + b" \n" for text in CSV]
    yield "blank lines, returns", [text.replace("\n", "\r\n\r\n").encode() for text in CSV]
    yield ":: with blank lines", [text.replace("\n", "\n\n").encode() for text in DAT]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return files_of(prepare(tmp_path_factory.mktemp("csv"), [text.encode() for text in CSV]))


@pytest.mark.parametrize("content", [pytest.param(c, id=name) for name, c in layouts()])
def test_every_layout_gives_equal_bytes(tmp_path, content, monkeypatch, expected):
    assert files_of(prepare(tmp_path / "whole", content)) == expected
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 300)
    monkeypatch.setattr(movielens, "_EVENTS_PER_WRITE", 100)
    assert files_of(prepare(tmp_path / "in blocks", content)) == expected


# The genres of ml-100k, in its order.
FLAGS = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
]  # fmt: skip


def test_ml_100k_gives_equal_bytes(tmp_path, monkeypatch):
    ratings, movies = raw(users=20)
    movies = {
        film: (f"é {film}", [g for i, g in enumerate(FLAGS[1:]) if (film + i) % 7 == 0])
        for film in movies
    }
    expected = files_of(prepare(tmp_path / "csv", [x.encode() for x in as_csv(ratings, movies)]))
    # The flag "unknown" is no genre.
    movies[7] = (movies[7][0], ["unknown", *movies[7][1]])
    content = as_100k(ratings, movies, FLAGS)
    latin = [text.encode("latin-1") for text in content]
    assert files_of(prepare(tmp_path / "whole", latin)) == expected
    returns = [b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode() for text in content]
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 300)
    zipped = [gzip.compress(data) for data in returns]
    assert files_of(prepare(tmp_path / "in blocks", zipped)) == expected


RATINGS, MOVIES = (text.encode() for text in CSV)
RATINGS_DAT, MOVIES_DAT = (text.encode() for text in DAT)


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
        (
            (with_line(RATINGS, 7, b'1,2,x,"2005-04-02 23:53:47"'), MOVIES),
            r"line 7: .* the rating, 'x', is not a num",
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
        ((b"1\t2\t3\t4\n1\t2\t6\t4", MOVIES), r"line 2: .* the rating, '6', is not a number"),
        ((RATINGS, b"7|A|||" + b"|0" * 19 + b"\n8|B|||" + b"|0" * 18), r"line 2: .*expected 24 fi"),
        ((RATINGS, b"7|A|||" + b"|0" * 18 + b"|2"), r"line 1: .*expected 24 fields .* 19 0 or 1"),
        ((b"7|A|||" + b"|0" * 19, b"1\t2\t3\t4"), r"movies, line 1: .*of ratings .are the two"),
        ((RATINGS, MOVIES + b"5,Again,War\n"), r"movies, line \d+: movie 5 occurs a second time"),
        ((MOVIES, RATINGS), r"movies, line 1: found .*which is of ratings .are the two files swap"),
        ((MOVIES_DAT, RATINGS_DAT), r"movies, line 1: found .* of ratings .are the two files swap"),
        ((MOVIES, MOVIES), r"ratings, line 1: found 'movieId,title,genres', which is of movies"),
        ((MOVIES_DAT, MOVIES), r"ratings, line 1: found .*, which is of movies .are the two"),
        ((gzip.compress(RATINGS)[:-20], MOVIES), r"ratings: truncated or damaged"),
        ((RATINGS, gzip.compress(MOVIES)[:-20]), r"movies: truncated or damaged"),
        ((b"", MOVIES), r"ratings: empty; expected ratings"),
        ((RATINGS, b""), r"movies: empty; expected movies"),
        ((RATINGS.partition(b"\n")[0] + b"\n\n", MOVIES), r"ratings: contains no ratings"),
        ((RATINGS, MOVIES.partition(b"\n")[0]), r"movies: contains no movies"),
        ((b"1::7::4::0\n2::7::4::0\n", MOVIES), r"ratings: 2 users; expected 3 or more"),
        (
            (RATINGS, b"3::A::War\n"),
            r"lacks (\d+) of the \1 films of .*ratings, for instance 7, 18, 29, .* both",
        ),
        (
            (RATINGS, "".join(MOVIES.decode().splitlines(True)[:20]).encode()),
            r"movies: lacks \d+ of the \d+ films of .*, for instance [\d, ]+; are both files of",
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
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(DinError, match=message):
        prepare(tmp_path / "a", **options)


def test_a_bad_line_is_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 200)
    with pytest.raises(DinError, match="line 277: 'oops' is not a rating"):
        prepare(tmp_path / "a", (with_line(RATINGS, 277, b"oops"), MOVIES))
    with pytest.raises(DinError, match="line 77: 'oops' is not a movie"):
        prepare(tmp_path / "b", (RATINGS, with_line(MOVIES, 77, b"oops")))


def test_a_missing_file_and_an_existing_store_are_refused(tmp_path):
    for name, problem in (("movies", "no such file"), (".", "is a folder")):
        with pytest.raises(
            DinError, match=f"{problem}; expected the file movies.csv or movies.dat"
        ):
            movielens.prepare(tmp_path / "ratings", tmp_path / name, tmp_path / "store")
    with pytest.raises(DinError, match="exists already"):
        movielens.prepare(tmp_path / "ratings", tmp_path / "movies", tmp_path)
