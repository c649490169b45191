"""Train BlackVIP's coordinator against a black box: resumable to the last answer that was paid for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from vlkit.adapters.blackvip.coordinator import Coordinator
from vlkit.engine.asking import BlackBox
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.loader import EpochLoader
from vlkit.engine.spsa import Spsa, SpsaOptions
from vlkit.errors import UserError, some
from vlkit.files import whole_file


class BlackBoxTraining:
    """SPSA-GC on the decoder of a coordinator. Nothing is differentiated.

    Args:
        coordinator: on its device.
        target: the black box.
        loader: batches of normalised pixels [B, 3, H, W] and labels [B]; a function of the seed and the step.
        options: of SPSA.
        mean, std: normalisation of the pixels, [3, 1, 1].
        folder: where the checkpoint goes.
        identity: JSON values that must not change when the run continues.
        seed: seed of the directions.

    Attributes:
        spsa: the optimizer; ``spsa.step`` = steps done.
        seconds: time in training steps, resumed parts included.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        target: BlackBox,
        loader: EpochLoader,
        options: SpsaOptions,
        mean: Tensor,
        std: Tensor,
        folder: Path,
        identity: dict[str, Any],
        seed: int = 0,
    ) -> None:
        self.coordinator, self.target, self.loader = coordinator, target, loader
        self.mean, self.std, self.file, self.seconds = mean, std, Path(folder) / STATE_FILE, 0.0
        self.identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
        self._parameters = list(coordinator.decoder.parameters())
        start = parameters_to_vector(self._parameters).detach()
        self.spsa = Spsa(start, options, seed)

    def steps(self, count: int) -> Iterator[float]:
        """Take the steps up to ``count``; yields the loss after each.

        Raises:
            UserError: the black box gave no usable answer, or the loss is not finite. The checkpoint holds everything
                up to that answer.
        """
        batches = self.loader.batches(self.spsa.step, count)
        for pixels, labels in batches:
            began = time.monotonic()
            try:
                loss = self.spsa.advance(self._loss_at(pixels, labels))
            except BaseException:
                self.save()  # finished repeats of the step are in it: their answers are not asked for again
                raise
            self.seconds += time.monotonic() - began
            if loss != loss or abs(loss) == float("inf"):
                raise UserError(f"step {self.spsa.step}: loss is {loss}; start again with a smaller --spsa.a")
            yield loss
        self.use_weights()

    def use_weights(self) -> None:
        """Put the current weights into the decoder, and switch it to evaluation."""
        vector_to_parameters(self.spsa.weights, self._parameters)
        self.coordinator.eval()

    @torch.no_grad()
    def ask(self, pixels: Tensor, features: Tensor | None = None) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> the black box's logits [B, C] for the prompted images."""
        prompted = self.coordinator(pixels.to(self.mean.device), features)
        return self.target.scores((prompted * self.std + self.mean).clamp(0, 1).cpu())

    def _loss_at(self, pixels: Tensor, labels: Tensor) -> Callable[[Tensor], float]:
        """The loss of one batch as a function of the decoder's weights; the encoder reads the batch once."""
        with torch.no_grad():
            features = self.coordinator.features(pixels.to(self.mean.device))

        def loss_at(weights: Tensor) -> float:
            vector_to_parameters(weights, self._parameters)
            # Batch norms use the statistics of this batch and update theirs, as published.
            self.coordinator.train()
            before = [(buffer, buffer.clone()) for buffer in self.coordinator.decoder.buffers()]
            try:
                scores = self.ask(pixels, features)
            except BaseException:
                for buffer, value in before:  # this evaluation comes again and must count once
                    buffer.copy_(value)
                raise
            # Differences between two losses are small: they are taken in double precision.
            return float(cross_entropy(scores.double(), labels))

        return loss_at

    # --- checkpoints ---

    def save(self) -> None:
        """Write the checkpoint: weights, momentum, finished repeats, batch norm statistics, images asked."""
        tensors = {f"spsa/{name}": tensor for name, tensor in self.spsa.state().items()}
        tensors |= {f"norm/{name}": tensor for name, tensor in self.coordinator.decoder.named_buffers()}
        values = {"asked": self.target.asked, "seconds": self.seconds, "identity": self.identity}
        with whole_file(self.file) as temporary:
            found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(found, temporary, {"values": json.dumps(values)})

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one; returns whether there was.

        Raises:
            UserError: it is damaged, or of a run with another identity.
        """
        if not self.file.exists():
            return False
        try:
            with safe_open(self.file, framework="pt") as file:
                values = json.loads((file.metadata() or {})["values"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            old, new = values["identity"], self.identity
            changed = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
            if changed:
                raise UserError(f"--resume: {some(changed, 12)}; continue with the same, or start another --output")
            self.spsa.restore({k.removeprefix("spsa/"): t for k, t in tensors.items() if k.startswith("spsa/")})
            for name, buffer in self.coordinator.decoder.named_buffers():
                buffer.copy_(tensors[f"norm/{name}"])
            self.target.asked, self.seconds = int(values["asked"]), float(values["seconds"])
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{self.file}: is no checkpoint of this run ({reason}); start another --output") from None
        return True
