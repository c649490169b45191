"""Run golden files against vlkit: ``python tests/parity.py FILE.safetensors … | FOLDER …``.

A file is one published module (see ``parity_file.py``); its JSON says which one, :data:`CASES` who rebuilds it here. A
folder with an ``index.json`` holds golden metric files; any other folder is taken for the golden files in it. For each
file the largest relative error of outputs and of gradients is printed.

Exit codes: 0 all passed; 1 a file or a metric is off, or is of a method that no case here covers; 2 wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from helpers import (
    parity_blackvip,
    parity_heads,
    parity_joint,
    parity_lst,
    parity_mdetr,
    parity_r2,
    parity_sherl,
    parity_t5,
    parity_unipt,
    parity_vit,
)
from helpers.parity_file import Golden, Rebuilt, Report, compare, read_golden
from vlkit.errors import UserError

Case = Callable[[Golden], Rebuilt]

# (method, word in the project's name, published class or function) -> case; a file that names no project has none
CASES: dict[tuple[str, str, str], Case] = {
    ("sherl", "VSE-infty", "sherl_for_transformer"): partial(parity_sherl.token_block, flavour="text"),
    ("sherl", "VSE-infty", "sherl_for_resnet"): partial(parity_sherl.token_block, flavour="conv"),
    ("sherl", "T5", "MTSAdapter"): partial(parity_sherl.token_block, flavour="gated"),
    ("sherl", "CLIP-ViL", "Sherl_Block"): partial(parity_sherl.token_block, flavour="gated"),
    ("sherl", "MDETR", "Sherl_Block"): partial(parity_sherl.token_block, flavour="mdetr"),
    ("sherl", "CLIP4Clip", "Sherl_Block"): parity_sherl.pooled_block,
    ("sherl", "CLIP-ViL", "LXRTEncoder"): parity_joint.joint_encoder,
    ("sherl", "MDETR", "Transformer"): parity_mdetr.encoder_decoder,
    ("sherl", "T5", "T5StackEnc"): parity_t5.encoder_stack,
    ("sherl", "T5", "T5StackDec"): parity_t5.decoder_stack,
    ("unipt", "VSE-infty", "Our_tuning_for_transformer"): partial(parity_unipt.token_block, flavour="text"),
    ("unipt", "VSE-infty", "Our_tuning_for_resnet"): partial(parity_unipt.token_block, flavour="conv"),
    ("unipt", "CLIP4Clip", "Our_tuning_for_transformer"): parity_unipt.pooled_block,
    ("unipt", "CLIP-ViL", "LXRTEncoder"): parity_unipt.joint_encoder,
    ("unipt", "MDETR", "Transformer"): parity_unipt.encoder_decoder,
    ("lst", "T5", "T5Stack"): parity_lst.t5_stack,
    ("lst", "CLIP-ViL", "LXRTEncoder"): parity_lst.joint_encoder,
    ("vqt", "VQT", "Head2ToeAttention"): parity_vit.vqt_attention,
    ("vqt", "VQT", "Head2ToeVisionTransformer"): parity_vit.vqt_features,
    ("synqt", "", ""): parity_vit.synqt,
    ("dtl", "DTL", "VisionTransformer"): parity_vit.dtl,
    ("blackvip", "BlackVIP", "DecoderManual"): parity_blackvip.decoder,
    ("blackvip", "BlackVIP", "BLACKVIP.forward_backward"): parity_blackvip.trajectory,
    ("retrieval head", "VSE-infty", "GPO"): parity_heads.generalised_pooling,
    ("loss", "VSE-infty", "ContrastiveLoss"): parity_heads.hinge,
    ("loss", "CLIP4Clip", "_loose_similarity"): parity_heads.video_text,
}


def find_case(about: dict[str, Any]) -> Case | None:
    """The case for a golden file's JSON, or None."""
    if about["method"] == "r2_tuning":  # its files need not name a class: their weights tell what they hold
        return parity_r2.rebuild
    source = about.get("upstream", {"project": "", "cls": ""})
    published = source["cls"].partition(" ")[0]
    for (method, project, name), case in CASES.items():
        if about["method"] == method and project in source["project"] and published == name:
            return case
    return None


def check_file(path: str | Path) -> Report:
    """Run one golden file.

    Single precision is run again in double where it misses its limit: next to the kink of a ReLU two correct float32
    runs can differ by more, and then only the file's own rounding is left in the error.

    Raises:
        UserError: the file or its JSON cannot be read.
    """
    golden = read_golden(path)
    report = _run(golden)
    if report.problems and golden.dtype == torch.float32:
        double = _run(golden.double())
        return report if double.problems else double
    return report


def _run(golden: Golden) -> Report:
    try:
        case = find_case(golden.about)
        if case is None:
            what = f"{golden.about['method']}, {golden.about.get('flavour', golden.name)}"
            return Report(golden.name, problems=[f"not covered: no case for {what}"])
        return compare(golden, case(golden))
    except (KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        # A file that cannot even be rebuilt must not keep the others from being checked.
        return Report(golden.name, problems=[f"{type(error).__name__}: {error}"])


def main(paths: list[str]) -> int:
    """Check every path, print what was found, and return the exit code."""
    failed = False
    try:
        for path in paths or _usage():
            if (Path(path) / "index.json").is_file():
                failed |= _metrics(path)
                continue
            for file in _golden_files(Path(path)):
                report = check_file(file)
                print("\n    ".join([report.line(), *report.problems]))
                failed |= bool(report.problems)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return int(failed)


def _metrics(folder: str) -> bool:
    from helpers.metric_fixtures import check_folder

    checks = check_folder(folder)
    for check in checks:
        verdict = "ok" if check.ok else "FAILED"
        print(f"{check.case}: largest error {check.worst:.1e} (limit {check.tolerance:.1e}): {verdict}")
    return not all(check.ok for check in checks)


def _golden_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: holds neither index.json nor golden files (*.safetensors); name another folder")
    return files


def _usage() -> list[str]:
    raise UserError("nothing to check; usage: python tests/parity.py FILE.safetensors … | FOLDER …")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
