"""A model as one ONNX file for every engine: written (`graph`), looked over (`lint`) and held against eager (`verify`).

Only `verify` needs onnxruntime; what writes needs torch, numpy and onnx.
"""

from __future__ import annotations

from srgan_fast.export.graph import INPUT, OUTPUT, Options, onnx_bytes

__all__ = ["INPUT", "OUTPUT", "Options", "onnx_bytes"]
