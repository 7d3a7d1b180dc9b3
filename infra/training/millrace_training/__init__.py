"""Trains, judges and registers the models of Millrace.

One run reads the training set of the warehouse as it was known at a time, splits it by
time, searches for parameters, fits the final model, measures it on the latest window
beside the model that is served now, writes a bundle that the functions can load, and
registers one version of it. It does not decide what is served: that is the gate's.

The modules, in the order of a run: request (what is asked for), data (reading the
training set), windows (splitting it), encoding (values to numbers), search (parameters
and the final fit), evaluation (what the model is worth), bundle (the files), tracking
(MLflow), events (what others are told), interruption (SIGTERM). training puts them
together, cli is the program.
"""

import os

__version__ = "0.1.0"

# MLflow reports its use to its makers unless it is told not to, and while one thread of it
# takes note of that in the environment, another that copies the environment fails.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
