"""A run's metrics.jsonl."""

import json

CURVES = [
    {"step": 2, "split": "train", "loss": 0.8, "epoch": 0.5},
    {"step": 6, "split": "train", "loss": 0.5, "epoch": 1.0},
    {"step": 6, "split": "validation", "log_loss": 0.6, "auc": 0.6, "user_weighted_auc": None},
    {"step": 12, "split": "train", "loss": 0.4, "epoch": 2.0},
    {"step": 12, "split": "validation", "log_loss": 0.7, "auc": 0.7, "user_weighted_auc": 0.65},
]


def with_log(workdir, lines=CURVES):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir
