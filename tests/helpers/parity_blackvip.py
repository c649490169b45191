"""Golden files of BlackVIP: its decoder, and the trajectory of its optimizer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from vlkit.adapters.blackvip.decoder import PromptDecoder
from vlkit.engine.spsa import Spsa, SpsaOptions


def decoder(golden: Golden) -> Rebuilt:
    """Features [B, F] -> prompts; weights have the published names."""
    config = golden.config
    grid = math.isqrt(config["source_dim"] // config["source_channels"])
    arch = "vit" if config["arch"].startswith("vit") else "resnet"
    model = PromptDecoder(config["feature_dim"], config["source_channels"], grid, arch).to(golden.dtype)
    weights = golden.part("weight.")
    model.load_state_dict({name.replace("p_trigger", "trigger"): tensor for name, tensor in weights.items()})
    model.train(golden.training)
    inputs = golden.leaves()
    output = model(inputs["z"])
    norms = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert len(norms) == 1
    return Rebuilt(
        output,
        {name.replace("trigger", "p_trigger"): p for name, p in model.named_parameters()},
        inputs,
        buffers=dict(model.named_buffers()),
        constants={"bn_eps": norms.pop()},
    )


def trajectory(golden: Golden) -> Rebuilt:
    """The weights after each step, with correction (the output) and without; directions come from the file."""
    config, inputs = golden.config, golden.leaves()
    split = config["classes"] * config["features"]

    def loss_at(w: Tensor) -> float:
        matrix, bias = w[:split].view(config["classes"], config["features"]), w[split:]
        return float(F.cross_entropy(3 * torch.tanh(inputs["x"] @ matrix.T + bias), inputs["y"]))

    weights, losses = {}, {}
    for name in ("spsa-gc", "spsa"):
        given = {key: config[key] for key in ("o", "c", "a", "alpha", "gamma", "b1", "averages")}
        run = Spsa(inputs["w0"], SpsaOptions(**given, correction=name == "spsa-gc"))
        steps = []
        for directions in inputs[f"perturb.{name}"]:
            losses.setdefault(name, []).append(run.advance(loss_at, directions))
            steps.append(run.weights)
        weights[name] = torch.stack(steps)
    aux = {"spsa": weights["spsa"]}
    aux |= {f"loss.{name}": torch.tensor(values, dtype=golden.dtype) for name, values in losses.items()}
    return Rebuilt(weights["spsa-gc"], inputs=inputs, aux=aux, constants={"steps": run.step})
