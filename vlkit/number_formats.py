"""The number formats that tensors are packed in."""

from __future__ import annotations

from typing import Literal

NumberFormat = Literal["fp32", "bf16", "int8"]
