"""The model behind LitServe, as its documentation shows it."""

import os

import joblib
import litserve as ls
import numpy as np


class Api(ls.LitAPI):
    def setup(self, device):
        self.model = joblib.load(os.environ["MODEL"])

    def decode_request(self, request):
        return np.asarray(request["rows"])

    def predict(self, rows):
        return self.model.predict(rows)

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, num_api_servers=1)
