"""The model behind BentoML, as its documentation shows it."""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(workers=1)
class Digits:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[int]:
        return self.model.predict(np.asarray(rows)).tolist()
