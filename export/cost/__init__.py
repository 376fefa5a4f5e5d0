"""Multiply-accumulates and parameters of any ONNX graph, from inferred shapes; no weights needed.

Counted: convolutions, matrix products, einsum contractions, attention and recurrences, in fp32, fp16 or quantised
form. Not counted, as is the custom for "MACs" of networks: biases, activations, normalisations, pooling, softmax,
resizing, and products of two tensors element by element.

Why our own: onnx-tool (1.0, MIT, kept up) charges elementwise operators too, so a ReLU costs its size, knows no
graphs inside If, Loop and Scan, and fails on LSTM; onnx-opcounter (last release 2024) wants the weights at hand.
Members are compared with PyTorch's FLOP counter, halved, and equal it exactly.

Where counters differ: elementwise work and biases are in some and not in others; attention's two products escape
counters that hook modules, where a fused kernel does them; padding, where an implementation rounds feature maps
down (EfficientNet-B7: 35.5 GMAC instead of 37.75); FLOPs quoted as MACs, a factor of 2. A published benchmark list
has B7 at 38.33 and ResNet-101 at 7.83, this counter 37.75 and 7.80: compare numbers of one counter, and allow 3 %
between two.
"""
