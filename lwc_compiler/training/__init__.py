"""Retraining under masks. The one door to ONNX Runtime Training; nothing else in lwc imports its training bindings."""
