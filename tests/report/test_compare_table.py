"""The table of a comparison says why it has no AUC."""

import pytest

from din_jax.report.markdown import as_markdown

NAN = float("nan")


@pytest.mark.parametrize(
    ("user_auc", "auc", "note"),
    [
        (
            NAN,
            NAN,
            "nan: the labels of test are all equal, and no AUC can tell clicks from others.",
        ),
        (NAN, 0.6, "nan: no user of test has both labels; compare by auc."),
        (0.6, 0.6, None),
    ],
)
def test_why_there_is_no_auc(user_auc, auc, note):
    line = {"model": "din", "activation": "dice", "seeds": 2}
    line |= {"user_weighted_auc": [user_auc] * 2, "auc": [auc] * 2, "log_loss": [0.5] * 2}
    text = as_markdown({"lines": [line], "differences": []})
    assert (text.splitlines()[-1] == note) if note else ("nan" not in text)
