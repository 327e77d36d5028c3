"""An HTTP server for one encoder: OpenAI's embeddings endpoint, search, health and metrics.

batcher.py     texts of many callers in shared packed batches
app.py         the endpoints
schema.py      what goes in and out, in OpenAI's schema
middleware.py  around every request: key, body, clients that leave, time
metrics.py     what /metrics shows
listening.py   the address: taken first, answered at last
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import MissingExtraError

if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
    raise MissingExtraError(
        "st_llm2vec.serving needs fastapi, uvicorn and prometheus-client. Install them with: "
        'pip install "st-llm2vec[serve]"'
    )

from .app import Limits, create_app
from .batcher import Batcher, BusyError
from .listening import listen, take_address

__all__ = ["Batcher", "BusyError", "Limits", "create_app", "listen", "take_address"]
