"""Write a saved retrieval adapter in the formats of other libraries: ONNX, sentence-transformers, open_clip, peft."""
