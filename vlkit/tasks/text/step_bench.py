"""A text-to-text training step of an adapted T5 on a synthetic batch, as measured by ``tasks/text/memory.py``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.load import load_text_base
from vlkit.encoders.stage import stage_hf, stage_t5_decoder
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.encoders.towers.text import TextEncoder
from vlkit.engine.distributed import make_fabric
from vlkit.engine.optim import make_optimizer
from vlkit.errors import UserError
from vlkit.memory.estimate import fake_copy, fake_tensors
from vlkit.memory.step import StepMemory, measure_step
from vlkit.tasks.generation import Reformulator, shift_right, token_loss

SIZES: dict[str, dict[str, int]] = {
    "t5-small": {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 6},
    "t5-base": {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12},
    "t5-large": {"d_model": 1024, "d_ff": 4096, "d_kv": 64, "num_heads": 16, "num_layers": 24},
    "t5-3b": {"d_model": 1024, "d_ff": 16384, "d_kv": 128, "num_heads": 32, "num_layers": 24},
}
"""Published sizes (Raffel et al., JMLR 2020), known without the hub."""
VOCABULARY = 32128


class T5Bench:
    """Training steps of any method on one T5, measured or predicted.

    Args:
        base: a key of :data:`SIZES` (random weights), or a text base with a decoder.
        predicts: compute nothing: tensors have shapes but no values.
        source_tokens, target_tokens: lengths of every text read and written.
        device: device of the steps, real or predicted.
        precision: number format.

    Attributes:
        device, precision: of the steps.
    """

    def __init__(
        self,
        base: str,
        predicts: bool = True,
        source_tokens: int = 128,
        target_tokens: int = 4,
        device: str = "cpu",
        precision: str = "32-true",
    ) -> None:
        self._fabric = make_fabric(device, precision)
        self.device, self.precision = self._fabric.device, self._fabric._precision.precision
        self.predicts, self.lengths = predicts, (source_tokens, target_tokens)
        self.stacks = _stacks(base, predicts)

    def model(self, options: MethodOptions) -> Reformulator:
        """The T5 with the method applied; new parameters have the same random weights every time."""
        encoder, decoder = copy.deepcopy(self.stacks)
        on_meta = torch.device("meta") if self.predicts else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), on_meta:
            torch.manual_seed(0)
            model = Reformulator(*options.build_stacks(encoder, decoder)).train()
        return model if self.predicts else model.to(self.device)

    def memory(self, model: Reformulator, batch_size: int) -> StepMemory:
        """The memory of one training step."""
        with fake_tensors() if self.predicts else contextlib.nullcontext():
            if self.predicts:
                model = fake_copy(model, self.device)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            return measure_step(model, self._loss_of(model, batch_size), make_optimizer(trained, 1e-4, 0.0))

    def _loss_of(self, model: Reformulator, batch_size: int) -> Callable[[], Tensor]:
        generator = torch.Generator().manual_seed(0)
        source, target = (torch.randint(3, 100, (batch_size, n), generator=generator) for n in self.lengths)
        source, target = source.to(self.device), target.to(self.device)

        def loss_of() -> Tensor:
            with self._fabric.autocast():
                return token_loss(model(source, shift_right(target, 0)), target, 0)

        return loss_of


def _stacks(base: str, predicts: bool) -> tuple[TextEncoder, T5Decoder]:
    """Both staged stacks; on the meta device if nothing is computed."""
    if base not in SIZES:
        loaded = load_text_base(base)
        if loaded.decoder is None:
            raise UserError(f"--text_base {base}: has no decoder; give {', '.join(SIZES)}, tiny, or another T5")
        both = nn.ModuleList([loaded.encoder, loaded.decoder])
        # Copied together: the stacks share the token table, which Module.to("meta") would give to each of them.
        reader, writer = fake_copy(both, torch.device("meta")) if predicts else both
        return cast(TextEncoder, reader), cast(T5Decoder, writer)
    config = cast(Any, T5Config)(vocab_size=VOCABULARY, decoder_start_token_id=0, **SIZES[base])
    with torch.device("meta") if predicts else contextlib.nullcontext():
        model: Any = T5ForConditionalGeneration(config).eval()
    return cast(TextEncoder, stage_hf(model)), stage_t5_decoder(model)
