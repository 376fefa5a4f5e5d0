"""The tutorial form: one blocking call per request and stage, in a loop over the requests."""

import triton_python_backend_utils as pb_utils
from deciding import Batch, plan_from_config


class TritonPythonModel:
    """A cascade of members in the same server."""

    def initialize(self, args):
        """Reads the plan from config.pbtxt."""
        self.plan = plan_from_config(args["model_config"])

    def execute(self, requests):
        """One response per request, in order."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """Asks stage after stage until every row of the request has its answer."""
        plan = self.plan
        image = pb_utils.get_input_tensor_by_name(request, plan.input)
        rows = image.as_numpy()
        batch = Batch(plan, len(rows))
        for member in plan.members:
            # The request's own tensor is forwarded as it is while all of its rows are open.
            whole = len(batch.open) == len(rows)
            tensor = image if whole else pb_utils.Tensor(plan.input, rows[batch.open])
            response = pb_utils.InferenceRequest(
                model_name=member, requested_output_names=[plan.output], inputs=[tensor]
            ).exec()
            if response.has_error():
                return pb_utils.InferenceResponse(error=response.error())
            batch.add(pb_utils.get_output_tensor_by_name(response, plan.output).as_numpy())
            if not len(batch.open):
                break
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, column) for name, column in batch.answers.items()]
        )
