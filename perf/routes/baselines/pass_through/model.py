"""The floor for any model that asks others: the batch goes to the first member, and its answer to the clients."""

import numpy as np
import triton_python_backend_utils as pb_utils
from deciding import plan_from_config, softmax


class TritonPythonModel:
    """One member of the same server, asked once per batch."""

    def initialize(self, args):
        """Reads the member's name from config.pbtxt."""
        self.plan = plan_from_config(args["model_config"])

    def execute(self, requests):
        """One response per request, in order."""
        plan = self.plan
        images = [pb_utils.get_input_tensor_by_name(request, plan.input) for request in requests]
        counts = [image.shape()[0] for image in images]
        if len(images) == 1:
            tensor = images[0]
        else:
            tensor = pb_utils.Tensor(plan.input, np.concatenate([image.as_numpy() for image in images]))
        response = pb_utils.InferenceRequest(
            model_name=plan.members[0], requested_output_names=[plan.output], inputs=[tensor]
        ).exec()
        if response.has_error():
            return [pb_utils.InferenceResponse(error=response.error()) for _ in requests]
        p = softmax(pb_utils.get_output_tensor_by_name(response, plan.output).as_numpy())
        rows = len(p)
        label = p.argmax(axis=1)
        columns = {
            "probabilities": p,
            "label": label[:, None],
            "confidence": p[np.arange(rows), label][:, None],
            "exit_stage": np.zeros((rows, 1), np.int32),
            "cost": np.full((rows, 1), plan.costs[0], np.float32),
            "status": np.zeros((rows, 1), np.int32),
        }
        ends = np.cumsum(counts).tolist()
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, column[start:end]) for name, column in columns.items()]
            )
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
