"""Forms of a cascade that people write for Triton; a rendered `model.py` is this file and names one to load."""

from itertools import accumulate

import numpy as np
import triton_python_backend_utils as pb_utils
from deciding import Batch, columns_of, plan_from_config, softmax, top_of


class AskingModel:
    """What all forms share."""

    def initialize(self, args):
        """Reads the plan from config.pbtxt."""
        self.plan = plan_from_config(args["model_config"])

    def images(self, requests):
        """The input tensor of each request."""
        return [pb_utils.get_input_tensor_by_name(request, self.plan.input) for request in requests]

    def asked(self, member, tensor):
        """A member's logits, or None and the error."""
        response = pb_utils.InferenceRequest(
            model_name=member, requested_output_names=[self.plan.output], inputs=[tensor]
        ).exec()
        if response.has_error():
            return None, response.error()
        return pb_utils.get_output_tensor_by_name(response, self.plan.output).as_numpy(), None

    def answered(self, rows, whole=None):
        """Asks stage after stage until every row has its answer; gives the columns, or None and the error.

        `whole` is a tensor of all rows that is there already; it is forwarded as it is while all are open.
        """
        batch = Batch(self.plan, len(rows))
        for member in self.plan.members:
            if len(batch.open) < len(rows):
                tensor = pb_utils.Tensor(self.plan.input, rows[batch.open])
            else:
                tensor = pb_utils.Tensor(self.plan.input, rows) if whole is None else whole
            logits, error = self.asked(member, tensor)
            if error is not None:
                return None, error
            batch.add(logits)
            if not len(batch.open):
                break
        return batch.answers, None


def responses(columns, counts, error=None):
    """One response per request of so many rows, in order."""
    if error is not None:
        return [pb_utils.InferenceResponse(error=error) for _ in counts]
    ends = list(accumulate(counts))
    return [
        pb_utils.InferenceResponse([pb_utils.Tensor(name, column[start:end]) for name, column in columns.items()])
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


class Tutorial(AskingModel):
    """The tutorial form: one blocking call per request and stage, in a loop over the requests."""

    def execute(self, requests):
        """One response per request, in order."""
        answers = []
        for image in self.images(requests):
            rows = image.as_numpy()
            columns, error = self.answered(rows, image)
            answers += responses(columns, [len(rows)], error)
        return answers


class Concatenate(AskingModel):
    """The concatenating form: the requests of a batch become one, asked stage by stage and answered at the end."""

    def execute(self, requests):
        """One response per request, in order."""
        images = self.images(requests)
        arrays = [image.as_numpy() for image in images]
        alone = len(images) == 1
        rows = arrays[0] if alone else np.concatenate(arrays)
        columns, error = self.answered(rows, images[0] if alone else None)
        return responses(columns, [len(array) for array in arrays], error)


class PassThrough(AskingModel):
    """The floor for any model that asks others: the first member is asked once for the whole batch."""

    def execute(self, requests):
        """One response per request, in order."""
        images = self.images(requests)
        if len(images) == 1:
            tensor = images[0]
        else:
            tensor = pb_utils.Tensor(self.plan.input, np.concatenate([image.as_numpy() for image in images]))
        logits, error = self.asked(self.plan.members[0], tensor)
        columns = None
        if error is None:
            p = softmax(logits)
            columns = columns_of(p, *top_of(p), stage=0, cost=self.plan.costs[0])
        return responses(columns, [image.shape()[0] for image in images], error)
