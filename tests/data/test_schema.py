import json

import pytest

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.errors import DinError

ITEM = Field("item", "item", "ad")


def test_a_schema_survives_json(rich):
    schema = rich[0].schema
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert hash(schema) == hash(Schema.from_json(schema.to_json()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema((Table("item", 0),), (), ()), "0 rows"),
        (lambda: Schema((Table("item", 2), Table("item", 2)), (), ()), "'item' is defined twice"),
        (lambda: Schema((Table("a/b", 2),), (), ()), "only letters"),
        (lambda: Schema((Table("item", 2),), (Field("x", "itme", "ad"),), ()), "tables are: item"),
        (lambda: Schema((Table("item", 2),), (Field("x", "item", "da"),), ()), "one of user, ad"),
        (
            lambda: Schema(
                (Table("item", 2), Table("shop", 2)),
                (ITEM,),
                (Sequence("h", (BehaviorField("shop", "shop", ad="item"),)),),
            ),
            r"not an ad field of table 'shop' that is always an input; ad fields: item \(item\)",
        ),
        (lambda: Schema((Table("item", 2),), (ITEM,), (Sequence("h", ()),)), "no fields"),
        (lambda: Schema.from_json({"tables": []}), "missing or unknown key"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(make, message):
    with pytest.raises(DinError, match=message):
        make()


def test_optional_fields_are_inputs_only_where_named():
    schema = Schema(
        (Table("item", 2), Table("user", 2)),
        (ITEM, Field("user_id", "user", "user", optional=True)),
        (),
    )
    assert [f.name for f in schema.inputs()] == ["item"]
    assert [f.name for f in schema.inputs(["user_id"])] == ["item", "user_id"]
    with pytest.raises(DinError, match="optional fields are: user_id"):
        schema.inputs(["item"])


def test_a_schema_without_a_table_has_none_of_its_fields(rich):
    schema = rich[0].schema.without(["genre", "age"])
    assert [t.name for t in schema.tables] == ["film", "hour"]
    assert [f.name for f in schema.fields] == ["film", "hour"]
    assert [[f.name for f in s.fields] for s in schema.sequences] == [["film"], ["film"]]
    assert rich[0].schema.without(["film", "genre"]).sequences == ()
    with pytest.raises(DinError, match=r"names 'movie'; .* tables are: film, genre, age, hour"):
        rich[0].schema.without(["movie"])


def test_an_item_bias_needs_a_one_hot_ad_field(rich):
    assert rich[0].schema.ad_field("film").table == "film"
    with pytest.raises(DinError, match="no one-hot ad field 'genres'; the data set has: film"):
        rich[0].schema.ad_field("genres")
