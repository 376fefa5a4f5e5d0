"""ONNX graphs: pieces that compute what the decision core computes, what a graph's ending says, and edits."""
