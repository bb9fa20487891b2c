"""The model behind BentoML's adaptive batching, as its documentation shows it."""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(workers=1)
class Batching:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)
