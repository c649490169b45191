"""The HTTP API as a Ray Serve application: replicas on the machines of a cluster, behind one address.

    pip install 'vlkit[scale]'
    serve run vlkit.serving.ray_serve:app model=/shared/runs/mine index=/shared/IDX replicas=4 gpus=1

Every replica loads the model and opens the index; Ray distributes the requests, starts lost replicas again and lets
those that it stops finish their requests.
"""
# No postponed annotations here: Ray reads the type of the argument of ``app`` from its annotation.

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vlkit.errors import needs

with needs("scale", "Ray Serve"):
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    from ray import serve  # pyright: ignore[reportMissingImports]

    from vlkit.serving.api import Limits, make_app, open_service, read_keys


class Arguments(BaseModel):
    """What ``serve run`` takes as ``NAME=VALUE``, and a configuration file of Serve as ``args``.

    Paths must be the same on every machine.

    Attributes:
        model: run or adapter folder, or a name on the hub.
        base: name of a base, in place of ``model``.
        index: index folder for /search, made by the same model.
        api_keys: file with the accepted API keys, one per line; None = anyone may ask.
        replicas: number of replicas.
        cpus, gpus: of a replica, as Ray counts them; may be fractions.
        max_body: largest request, in MiB.
        max_inputs: most inputs per request.
        max_waiting: requests at once per replica; Ray holds further ones back.
        device: device to compute on.
    """

    model_config = ConfigDict(extra="forbid")

    model: Path | None = None
    base: str | None = None
    index: Path | None = None
    api_keys: Path | None = None
    replicas: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0)
    max_body: int = Field(32, ge=1)
    max_inputs: int = Field(256, ge=1)
    max_waiting: int = Field(64, ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _usable(self) -> "Arguments":
        if (self.model is None) == (self.base is None):
            raise ValueError("give either model=DIR (a saved adapter) or base=NAME")
        for name in ("index", "api_keys"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise ValueError(f"{name}={path}: is not there; give a path that every machine sees")
        return self

    def absolute(self) -> "Arguments":
        """With paths from the root: a replica works in another folder."""
        paths = {name: getattr(self, name) for name in ("model", "index", "api_keys")}
        return self.model_copy(update={name: path.absolute() for name, path in paths.items() if path and path.exists()})


def app(arguments: Arguments) -> Any:
    """The application that ``serve run`` and ``serve deploy`` start.

    Raises:
        UserError: the file of keys holds none.
    """
    given = arguments.absolute()
    replica = serve.deployment(
        name="vlkit",
        num_replicas=given.replicas,
        max_ongoing_requests=given.max_waiting,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
        graceful_shutdown_timeout_s=60,
    )
    return replica(serve.ingress(_builder(given))()).bind()


def _builder(given: Arguments) -> Callable[[], Any]:
    """A function that makes the ASGI application, inside a replica."""
    keys = read_keys(given.api_keys) if given.api_keys else []

    def build() -> Any:
        service = open_service(given.model, given.base, given.index, given.device)
        # As many threads as requests: Ray bounds their number.
        limits = Limits(given.max_body * 2**20, given.max_inputs, given.max_waiting, threads=given.max_waiting)
        return make_app(service, limits, keys)

    return build
