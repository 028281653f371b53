"""Writes docs/pictures/report.svg: the report of a fold as a terminal shows it.

python -m docs.picture
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

import bnfold
from bnfold.report import text
from bnfold.report.folding import fold_document

DOCS = Path(__file__).parent
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's own, with the fonts of whoever looks at it: the picture loads nothing."""

MODEL = DOCS.parent / "models" / "checkpoints" / "batch_norm_network.onnx"


def main() -> None:
    console = Console(record=True, width=text.WIDTH, file=io.StringIO(), force_terminal=True)
    text.show(console, text.parts(fold_document(bnfold.fold(MODEL))))
    console.save_svg(
        str(DOCS / "pictures" / "report.svg"),
        title=f"bnfold fold {MODEL.name}",
        code_format=FORMAT,
        unique_id="report",
    )


if __name__ == "__main__":
    main()
