"""From a trained generator to one verified ONNX file. The modules inside need the export extra."""
