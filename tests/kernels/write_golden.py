"""Writes the texts of kernels that `test_gpu` compares with; run it with PYTHONPATH=.:tests/kernels."""

from test_gpu import GOLDEN, golden_kernels

for name, text in golden_kernels().items():
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.cu").write_text(text, encoding="utf-8")
