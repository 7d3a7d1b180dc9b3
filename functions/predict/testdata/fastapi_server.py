"""What predict is measured against: XGBoost behind FastAPI, as most teams serve it.

It answers the same Open Inference request by the same model. The model runs in the
server's own process, on one thread: more threads fight for few cores.
"""

import sys

import fastapi
import numpy as np
import pydantic
import uvicorn
import xgboost

booster = xgboost.Booster({"nthread": 1})
booster.load_model(sys.argv[1])
app = fastapi.FastAPI()


class Tensor(pydantic.BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[list[float]]


class Request(pydantic.BaseModel):
    id: str | None = None
    inputs: list[Tensor]


class Output(pydantic.BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Response(pydantic.BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/hundred/infer")
async def infer(request: Request) -> Response:
    rows = np.asarray(request.inputs[0].data, dtype=np.float32)
    predictions = booster.inplace_predict(rows).tolist()
    output = Output(name="predict", datatype="FP64", shape=[len(predictions)], data=predictions)
    return Response(model_name="hundred", model_version="1", id=request.id, outputs=[output])


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
