"""Image captioning: the model, and its entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.text_side import TextSide
from vlkit.errors import UserError
from vlkit.tasks.generation import ImageWriter, image_side
from vlkit.tasks.visual_embedding import VisualEmbedding


@dataclass
class CaptionOptions:
    """How captions are written."""

    prompt: str = "caption:"
    """Text that the encoder reads beside the image."""
    cells: int = 6
    """Cells per side that an image is pooled to (maximum of each cell); more cells cost memory."""
    beams: int = 5
    """Beam size; 1 = greedy."""
    max_tokens: int = 40
    """Longest caption in tokens, end token included."""
    length_power: float = 1.0
    """Captions are ranked by log probability / length ** length_power; 0 prefers short ones."""
    no_repeat: int = 2
    """A run of this many tokens is written once in a caption; 0 = no such rule. A frozen decoder falls into loops."""
    blind: bool = False
    """Leave the image out: the control that knows only the language of captions."""

    def __post_init__(self) -> None:
        for name in ("cells", "beams", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--head.{name} {getattr(self, name)}: must be at least 1")
        if self.no_repeat < 0:
            raise UserError(f"--head.no_repeat {self.no_repeat}: must be 0 or more tokens")
        if not self.prompt.strip():
            raise UserError("--head.prompt: is blank; give the encoder a word to read, such as caption:")


def writing_base(text: TextSide) -> TextBase:
    """The text base of a side, which must have a decoder.

    Raises:
        UserError: it has none.
    """
    if text.base is None or text.base.decoder is None:
        raise UserError(f"--text_base {text.name}: has no decoder; give a T5 (tiny, google-t5/t5-base or a folder)")
    return text.base


def build_model(base: ClipBase, text: TextSide, adapter: MethodOptions, head: CaptionOptions) -> ImageWriter:
    """Apply the same adaptation method to the vision tower (:func:`image_side`) and to both stacks of the T5.

    Args:
        base: the loaded base; its vision tower becomes part of the model.
        text: the T5; its stacks become part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS` that adapts a decoder.
        head: how captions are written.

    Raises:
        UserError: the method does not fit a tower or the decoder, or the text base has none.
    """
    t5 = writing_base(text)
    reader, writer = adapter.build_stacks(t5.encoder, t5.decoder)
    image = None if head.blind else image_side(adapter.for_cells()).build(base.image, "tokens")
    visual = VisualEmbedding(base.image.token_dim, t5.encoder.token_dim, head.cells)
    if not adapter.joint_side_network:
        visual.start_with_content()
    return ImageWriter(image, reader, writer, visual)


def identity_of(base: ClipBase, text: TextSide) -> dict[str, dict[str, Any]]:
    """Identity of the towers ``image``, ``text`` and ``decoder``."""
    return {"image": {**base.identity["image"], "load": base.name}, **text.identity}


def adapter_config(
    base: ClipBase, text: TextSide, adapter: MethodOptions, head: CaptionOptions, metrics: dict[str, float]
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same bases."""
    return {
        "task": "captioning",
        "base": identity_of(base, text),
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": asdict(head),
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }


def head_options(values: dict[str, Any]) -> CaptionOptions:
    """The options of a saved head.

    Raises:
        UserError: an option that this vlkit does not know.
    """
    try:
        return CaptionOptions(**values)
    except TypeError as error:
        raise UserError(f"vlkit_adapter.json: the options of 'head' do not fit ({error}); update vlkit") from None
