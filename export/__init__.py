"""From a PyTorch module to files that run: ONNX, then TFLite."""
