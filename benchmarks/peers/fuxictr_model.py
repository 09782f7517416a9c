"""FuxiCTR's DIN (of its LongCTR models) on the files of `fuxictr_files.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader


class Library:
    """Makes models and loaders of a folder that `fuxictr_files.write` filled."""

    def __init__(self, folder: Path, dim: int):
        self._folder, self._dim = folder, dim
        self._features = FeatureMap("samples", str(folder))
        self._features.load(str(folder / "features.json"), {"embedding_dim": dim})
        self._max_history = json.loads((folder / "features.json").read_text())["max_history"]

    def model(self, **options: Any) -> DIN:
        """Makes a model, to be trained with `train_epoch` and without the library's evaluation."""
        model = DIN(
            self._features,
            embedding_dim=self._dim,
            loss="binary_crossentropy",
            metrics=["AUC"],
            model_root=str(self._folder),
            verbose=0,
            **options,
        )
        # `BaseModel.fit` sets these before it calls `train_epoch`. Evaluation is turned off.
        model._max_gradient_norm = 10.0
        model._total_steps = 0
        model._eval_steps = sys.maxsize
        model._stop_training = False
        model._batch_index = 0
        return model

    def loader(self, split: str, batch: int, workers: int, *, shuffle: bool) -> LongCTRDataLoader:
        """Makes a loader of a split."""
        return LongCTRDataLoader(
            self._features,
            str(self._folder / f"{split}.parquet"),
            str(self._folder / f"{split}-histories.parquet"),
            str(self._folder / "goods.parquet"),
            batch_size=batch,
            shuffle=shuffle,
            num_workers=workers,
            max_len=self._max_history,
        )
