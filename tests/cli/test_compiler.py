"""PyTorch's compiler: imported by nothing that does not need it, and itself where something does."""

from __future__ import annotations

import pytest

from helpers.fresh_python import ROOT, python

SCRIPT = """
import inspect, sys
from vlkit.cli.compiler import defer_compiler
defer_compiler()
import lightning_fabric.wrappers, open_clip, timm, torch, torchvision
inspect.getmodule(torch.nn.Linear)  # walks through all modules
model = torch.nn.Linear(2, 2)
marked = torch.compiler.disable(lambda x: 2 * x)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert not isinstance(model, lightning_fabric.wrappers.OptimizedModule) and marked(3) == 6
assert not {"torch._dynamo.eval_frame", "torch._inductor", "sympy"} & set(sys.modules)
"""


def test_libraries_are_imported_and_train_without_it() -> None:
    python(SCRIPT)


def test_it_is_there_for_whoever_compiles() -> None:
    python(
        SCRIPT
        + """
seen = []
def backend(graph, inputs):
    seen.append([str(node.target) for node in graph.graph.nodes])
    return graph
compiled = torch.compile(model, backend=backend)
assert isinstance(compiled, lightning_fabric.wrappers.OptimizedModule) and seen == []
assert torch.equal(compiled(torch.ones(1, 2)), model(torch.ones(1, 2))) and len(seen) == 1
both = torch.compile(lambda x: marked(x + 1) - 1, backend=backend)
assert both(torch.tensor(3.0)) == 7 and len(seen) == 3, "what is marked stays out of the graphs"
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2).mean() == 1
"""
    )


def test_a_part_of_it_is_imported_once() -> None:
    python(
        SCRIPT
        + """
import torch._dynamo.polyfills.loader as loader
import torch._dynamo.config
assert torch._dynamo.polyfills.loader is loader is sys.modules["torch._dynamo.polyfills.loader"]
assert loader.__spec__.origin == loader.__file__ and torch._dynamo.config.cache_size_limit > 0
import torch._dynamo.testing
assert torch._dynamo.testing.CompileCounter().frame_count == 0
"""
    )


@pytest.mark.parametrize(
    "first",
    [
        "import torch._dynamo.config",
        "from torch._dynamo import config",
        "import torch._dynamo.utils as utils; utils.counters",
        "from torch._dynamo.eval_frame import OptimizedModule",
        "from torch._subclasses.fake_tensor import FakeTensorMode; FakeTensorMode()",
        "import torch; torch._dynamo.reset()",
    ],
)
def test_whatever_asks_first_gets_it(first: str) -> None:
    python(
        f"""
import sys
from vlkit.cli.compiler import defer_compiler
defer_compiler()
{first}
import torch._dynamo
assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert torch._dynamo.config.__spec__.origin == torch._dynamo.config.__file__
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.__spec__.origin
"""
    )


@pytest.mark.parametrize(("script", "defers"), [("tasks/memory.py", True), ("elsewhere/memory.py", False)])
def test_only_own_scripts_defer_it(script: str, defers: bool) -> None:
    python(
        f"""
import sys
sys.modules["__main__"].__file__ = {str(ROOT / script)!r}
import vlkit.cli.config
assert ("torch._dynamo" in sys.modules) is {defers}
"""
    )
