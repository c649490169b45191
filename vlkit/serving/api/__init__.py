"""An HTTP API over a retrieval model: OpenAI-style embeddings of texts and images, and search in an index.

    app = make_app(Service(pipeline, index), Limits(), keys=("secret",))
    serve(app, listen("127.0.0.1", 8000), drain_seconds=5)

A server holds no state, so any number of replicas may stand behind a load balancer.
"""

from vlkit.serving.api.app import make_app
from vlkit.serving.api.guard import Limits, read_keys
from vlkit.serving.api.inputs import Service, open_service
from vlkit.serving.api.server import listen, serve

__all__ = ["Limits", "Service", "listen", "make_app", "open_service", "read_keys", "serve"]
