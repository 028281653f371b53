"""ONNX models, through onnx-ir; torch is never imported."""
