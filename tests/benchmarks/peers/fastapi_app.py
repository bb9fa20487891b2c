"""The model behind FastAPI, as its documentation shows it."""

import os

import joblib
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

model = joblib.load(os.environ["MODEL"])
app = FastAPI()


class Rows(BaseModel):
    rows: list[list[float]]


@app.post("/predict")
async def predict(body: Rows) -> list[int]:
    return model.predict(np.asarray(body.rows)).tolist()
