"""A whole cascade, or its leading stages, as one ONNX graph that any ONNX Runtime runs.

The answers are the decision core's: same labels, exit stages, status and costs, probabilities to rounding.
What the served cascade can do and one graph cannot:

- Requests have no parameters (`min_stage`, `max_stage`, `threshold_shift`, `deadline_us`).
- Members cannot fail or be replaced one by one. What can happen is that a member's output for a row is no number;
  the row then has label -1, NaN for probabilities and confidence and status bit 1, where the cascade answers
  UNAVAILABLE. With `on_failure: answer` the row is answered from the other members, just as there.
- Rows with NaN or infinity are not refused (`non_finite: reject`); they go to the members like any others.
- Sure rows wait for the unsure ones of their batch.
- A logit beyond 1e30 counts as 1e30 only where several members are added up.
"""
