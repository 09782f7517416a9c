"""Synthetic impressions with the feature groups of the paper's table 1, at any size.

There are sixteen feature groups, counted as section 6.1 counts them: a group is a field whose
vector goes into the MLP. With D = 12 the input of the MLP is 16 · 12 = 192 wide, as in the paper.
Five groups are of the profile, three of the behaviours (one sequence with three aligned fields),
five of the ad (one of them multi-hot) and three of the context. The user's id is not a field: its
table would grow with the number of users. `samples/user` groups Eq. 10.

Goods lie in categories. Categories that are bought together form bundles, and a shop sells goods of
one bundle. How often a good is visited and shown falls as a power of its rank. A user has a few
latent interests, each a bundle. The history is drawn from them, with some noise, and lies before
the first day. An impression is clicked with probability sigmoid(z), where z is the sum of

    the ad's appeal: of the good, its shop, its category and its keywords;
    crosses: gender × category, age × category, purchasing level × price level;
    the user's own inclination, by city, occupation and the user; pid, time, weekday;
    TASTE · log2(1 + behaviours in the ad's bundle) + LOYALTY · log2(1 + those in the ad's shop).

The draw of the label is the only noise. Signals are weak, as in display advertising: clicks are
rare, and the Bayes bound of the user-weighted AUC is about 0.67. A good occurs in ten training
impressions on average, and most goods in fewer: a model that keeps fitting ids learns the noise.

Train is days 1 to 13, validation day 14 and test day 15: train and validation together are the
paper's two weeks. The last two days have more impressions than the others, so that Eq. 10 has
several for each user.

Users are generated in chunks, each with random numbers of its own. Memory grows with the catalogue,
not with samples or users, and a larger number of users does not change the users before them.
"""

from din_jax.prepare.industrial.size import GOODS_PER_SHOP, SAMPLES, SAMPLES_PER_GOOD, Size
from din_jax.prepare.industrial.writing import prepare

__all__ = ["GOODS_PER_SHOP", "SAMPLES", "SAMPLES_PER_GOOD", "Size", "prepare"]
