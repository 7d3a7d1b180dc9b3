"""Superset's configuration beside a running Millrace, as `up` starts it.

A shared installation has its own: a database server for SQLALCHEMY_DATABASE_URI, a cache,
and HTTPS in front.
"""

import os

SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]
SQLALCHEMY_DATABASE_URI = "sqlite:///" + os.path.join(os.environ["SUPERSET_HOME"], "superset.db")

# Gold gets new rows every few seconds, and charts are asked by more than one.
DATA_CACHE_CONFIG = {"CACHE_TYPE": "SimpleCache", "CACHE_DEFAULT_TIMEOUT": 60}
CACHE_CONFIG = {"CACHE_TYPE": "SimpleCache", "CACHE_DEFAULT_TIMEOUT": 60}
