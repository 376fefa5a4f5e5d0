"""A model that derives tensors from texts, one STRING or more per row. A bad row fails its request alone.

`python -m export` wrote it, with the settings below; derive.py beside it does the work of its kind. The settings
hold the hash of every file that decides the tensors, so the hash of this file stands for all of them.
"""

import hashlib
import importlib
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

SETTINGS: dict = {'name': 'tokenizer_docstrings',
 'inputs': ['text'],
 'packages': ['tokenizers==0.23.3'],
 'files': {'tokenizer.json': '2e9bf1e1b4e942916f837719964f56bc705361fcd1ccddfa1993da0e5e4e4a99',
           'derive.py': '3814ae38d92cb6cb3c40edbf2a7c899259e3b6cef8e525b0e952c66d707649d9'},
 'options': {'max_length': 96,
             'over_length': 'truncate',
             'empty': 'refuse',
             'max_bytes': 262144,
             'pads': {'input_ids': 0, 'attention_mask': 0, 'token_type_ids': 0},
             'padding_side': 'right',
             'truncation_side': 'right',
             'pair': False}}
HERE = Path(__file__).resolve().parent


def _one_line(text):
    return " ".join(str(text).split())


def _refuse(text):
    raise pb_utils.TritonModelException(_one_line(text))


def _kind():
    """The module that does the work; a refusal names what is not installed."""
    sys.path.insert(0, str(HERE))
    pins = " ".join(SETTINGS["packages"])
    try:
        return importlib.import_module("derive")
    except ImportError as error:
        return _refuse(
            f"{SETTINGS['name']}: the server's Python cannot import {error.name or 'a package'} ({error}); "
            f"install it there with `pip install --no-deps {pins}`, or serve with the image of deploy/image"
        )


class TritonPythonModel:
    """One instance."""

    def initialize(self, _args):
        """Loads what was exported; any other file is refused."""
        for name, expected in SETTINGS["files"].items():
            path = HERE / name
            if not path.is_file():
                _refuse(f"{SETTINGS['name']}: {name} is missing beside model.py; export it again")
            if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                _refuse(f"{SETTINGS['name']}: {name} is another file than was exported; export it again")
        kind = _kind()
        self._refusal = kind.REFUSAL
        try:
            self._derive = kind.load(HERE, **SETTINGS["options"])
        except Exception as error:
            _refuse(f"{SETTINGS['name']}: {type(error).__name__}: {error}")

    def execute(self, requests):
        """Answers every request by itself: rows of others change neither its answer nor its padding."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in SETTINGS["inputs"]]
            columns = [tensor.as_numpy().ravel().tolist() for tensor in tensors]
            # A row of several inputs is a tuple of its values.
            rows = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            arrays = self._derive(rows, request.requested_output_names())
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])
        except self._refusal as error:
            names = SETTINGS["inputs"]
            # The input that is wrong; without one it is the row.
            place = getattr(error, "input", 0)
            name = ", ".join(names) if place is None else names[place]
            return _error(f"{name}: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            text = f"{SETTINGS['name']}: {type(error).__name__}: {error}"
            return _error(text, pb_utils.TritonError.INTERNAL)


def _error(text, code):
    return pb_utils.InferenceResponse([], error=pb_utils.TritonError(_one_line(text), code))
