"""The concatenating form: the requests of a batch become one, asked stage by stage and answered at the end."""

import numpy as np
import triton_python_backend_utils as pb_utils
from deciding import Batch, plan_from_config


class TritonPythonModel:
    """A cascade of members in the same server."""

    def initialize(self, args):
        """Reads the plan from config.pbtxt."""
        self.plan = plan_from_config(args["model_config"])

    def execute(self, requests):
        """One response per request, in order."""
        plan = self.plan
        images = [pb_utils.get_input_tensor_by_name(request, plan.input) for request in requests]
        arrays = [image.as_numpy() for image in images]
        rows = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        batch = Batch(plan, len(rows))
        for member in plan.members:
            # A single request's own tensor is forwarded as it is while all of its rows are open.
            if len(batch.open) < len(rows):
                tensor = pb_utils.Tensor(plan.input, rows[batch.open])
            else:
                tensor = images[0] if len(images) == 1 else pb_utils.Tensor(plan.input, rows)
            response = pb_utils.InferenceRequest(
                model_name=member, requested_output_names=[plan.output], inputs=[tensor]
            ).exec()
            if response.has_error():
                return [pb_utils.InferenceResponse(error=response.error()) for _ in requests]
            batch.add(pb_utils.get_output_tensor_by_name(response, plan.output).as_numpy())
            if not len(batch.open):
                break
        ends = np.cumsum([len(array) for array in arrays]).tolist()
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, column[start:end]) for name, column in batch.answers.items()]
            )
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
