"""The simple baselines in plain Python, a sample at a time, from the columns of a store."""

import math

import numpy as np

from din_jax.baselines import co_occurrence
from din_jax.baselines.click_rates import BLOCK, PRIOR_IMPRESSIONS
from din_jax.data.columns import column_names


class Oracle:
    """Args: see `Baselines`; `every`: only every n-th user with a basket counts."""

    def __init__(self, store, fit="train", max_history=0, every=1):
        self.store, self.fit, self.max_history = store, store.split(fit), max_history
        self.columns = {name: store.column(name).tolist() for name in column_names(store.schema)}
        self.label, self.user = (self.columns[f"samples/{name}"] for name in ("label", "user"))
        self.every = every

    def own_values(self, name, multi_hot, i):
        ids = self.columns[name]
        if not multi_hot:
            return [ids[i]]
        offsets = self.columns[f"{name}.offsets"]
        return ids[offsets[i] : offsets[i + 1]]

    def ad_values(self, field, i):
        (field,) = [f for f in self.store.schema.fields if f.name == field]
        return self.own_values(f"fields/{field.name}", field.multi_hot, i)

    def history(self, sequence, i):
        """The indices of the sample's behaviours."""
        start, end = (self.columns[f"sequences/{sequence}.{edge}"][i] for edge in ("start", "end"))
        return range(max(start, end - self.max_history) if self.max_history else start, end)

    def behavior_values(self, sequence, behavior, event):
        return self.own_values(f"events/{sequence}/{behavior.name}", behavior.multi_hot, event)

    def click_rate(self, values_of, i, left_out):
        """The mean click rate and clicks over the values that `values_of` gives for sample i."""
        rate = np.mean([self.label[s] for s in self.fit])
        block = (i - self.fit.start) // BLOCK if left_out else None
        rates, clicks = [], []
        for value in values_of(i):
            counted = [
                self.label[s]
                for s in self.fit
                if (s - self.fit.start) // BLOCK != block
                for v in values_of(s)
                if v == value
            ]
            m = PRIOR_IMPRESSIONS
            rates.append((sum(counted) + m * rate) / (len(counted) + m))
            clicks.append(sum(counted) if value else 0)
        return (np.mean(rates), np.mean(clicks)) if rates else (rate, 0)

    def in_history(self, sequence, behavior, i):
        """The count and the share."""
        values = [v for e in self.history(sequence, i) for v in self.of(sequence, behavior, e)]
        count = sum(v == a and a > 0 for v in values for a in self.ad_values(behavior.ad, i))
        return count, count / len(values) if values else 0

    of = behavior_values

    def popularity(self, sequence, behavior, i):
        trained = {e for s in self.fit for e in self.history(sequence, s)}
        own = [s for s in self.fit if self.user[s] == self.user[i]]
        later = range(self.history(sequence, i).stop, self.last_end(sequence, own))
        ad = self.ad_values(behavior.ad, i)
        counts = [
            sum(
                v == a and a > 0
                for e in trained - set(later)
                for v in self.of(sequence, behavior, e)
            )
            for a in ad
        ]
        return np.mean(counts) if counts else 0

    def last_end(self, sequence, samples):
        return max((self.history(sequence, s).stop for s in samples), default=0)

    def baskets(self, sequence, behavior):
        """{user: set of ids}."""
        baskets = {}
        for user in sorted({self.user[s] for s in self.fit}):
            own = [s for s in self.fit if self.user[s] == user]
            last = max(own, key=lambda s: (self.history(sequence, s).stop, s))
            visited = list(self.history(sequence, last))[-co_occurrence.RECENT :]
            clicked = [s for s in own if self.label[s]][-co_occurrence.RECENT :]
            ids = {v for e in visited for v in self.of(sequence, behavior, e)}
            ids |= {v for s in clicked for v in self.ad_values(behavior.ad, s)}
            if ids - {0}:
                baskets[user] = ids - {0}
        return {user: ids for n, (user, ids) in enumerate(baskets.items()) if n % self.every == 0}

    def co_occurrence(self, baskets, sequence, behavior, i):
        (ad,) = self.ad_values(behavior.ad, i)
        others = [ids for user, ids in baskets.items() if user != self.user[i]]
        cosines = []
        for event in list(self.history(sequence, i))[-co_occurrence.RECENT :]:
            (item,) = self.of(sequence, behavior, event)
            both = sum(ad in ids and item in ids for ids in others)
            c_ad = sum(ad in ids for ids in others)
            c_item = sum(item in ids for ids in baskets.values())
            zero = not both or item == ad
            cosines.append(0 if zero else both / math.sqrt(c_ad * c_item))
        return np.mean(cosines) if cosines else 0

    def scores(self, samples, *, left_out=False):
        """{name: scores} of all but the logistic regression."""
        found = {}

        def add(name, values):
            found[name] = np.array(list(values), np.float64)

        def rates(name, values_of, popularity):
            both = [self.click_rate(values_of, i, left_out) for i in samples]
            add(f"click rate of {name}", (rate for rate, _ in both))
            if popularity:
                add(f"popularity of {name} by clicks", (clicks for _, clicks in both))

        rates("the user", lambda i: [self.user[i]], False)
        for field in self.store.schema.fields:
            if not (field.optional and field.group == "user"):
                rates(field.name, lambda i, f=field: self.ad_values(f.name, i), field.group == "ad")
        for sequence in self.store.schema.sequences:
            for b in sequence.fields:
                name = f"{b.ad} in {sequence.name}" + (f".{b.name}" if b.name != b.ad else "")
                counts = [self.in_history(sequence.name, b, i) for i in samples]
                add(f"count of {name}", (count for count, _ in counts))
                add(f"share of {name}", (share for _, share in counts))
                add(
                    f"popularity of {name}", (self.popularity(sequence.name, b, i) for i in samples)
                )
            b = sequence.fields[0]
            ad = next(f for f in self.store.schema.fields if f.name == b.ad)
            if not b.multi_hot and not ad.multi_hot:
                baskets = self.baskets(sequence.name, b)
                add(
                    f"co-occurrence of {b.ad} with {sequence.name}",
                    (self.co_occurrence(baskets, sequence.name, b, i) for i in samples),
                )
        return found
