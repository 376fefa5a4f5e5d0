"""A cascade's input tensor, and how a client makes a row of it from a picture."""

from dataclasses import dataclass

from orchestrator.spec.validation import Faults, is_finite

NON_FINITE_INPUT = ("reject", "pass")
# Triton's numeric dtypes -> numpy's. BF16 has no numpy dtype, and BYTES would have to be parsed row by row.
INPUT_DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a client turns an image file into one row; the server never runs it.

    Args:
        mode: "L" (one channel) or "RGB".
        height_px, width_px: size after resizing.
        resize_px: shorter side before a centre crop; None resizes straight to the size.
        value_min, value_max: what pixel 0 and pixel 255 become.
        invert: True where the model was trained on light strokes over dark ground.
        layout: "CHW" or "HWC".
    """

    mode: str
    height_px: int
    width_px: int
    resize_px: int | None = None
    value_min: float = 0.0
    value_max: float = 255.0
    invert: bool = False
    layout: str = "CHW"

    def __post_init__(self) -> None:
        faults = Faults("preprocess")
        faults.one_of("mode", self.mode, ("L", "RGB"))
        faults.one_of("layout", self.layout, ("CHW", "HWC"))
        faults.integer("height_px", self.height_px, low=1, high=65536)
        faults.integer("width_px", self.width_px, low=1, high=65536)
        if self.resize_px is not None:
            faults.integer("resize_px", self.resize_px, low=1, high=65536)
        for name in ("value_min", "value_max"):
            value = getattr(self, name)
            faults.check(name, is_finite(value), f"got {value!r}, expected a number")
        faults.check("invert", isinstance(self.invert, bool), f"got {self.invert!r}, expected true or false")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The one tensor every member shares.

    Args:
        name: tensor name, the same in the cascade and (for copy-free forwarding) in the members.
        dtype: Triton dtype, e.g. "FP32" or "UINT8".
        dims: shape of one row, without the batch axis, all sizes fixed.
        non_finite: "reject" answers INVALID_ARGUMENT to NaN or infinity, "pass" hands them to the members.
        preprocess: how clients build a row from an image file; None where nothing says.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    non_finite: str = "reject"
    preprocess: Preprocess | None = None

    def __post_init__(self) -> None:
        faults = Faults("input")
        faults.text("name", self.name)
        faults.one_of("dtype", self.dtype, INPUT_DTYPES)
        faults.check("dims", len(self.dims) > 0, "got none, expected at least one size")
        for size in self.dims:
            faults.integer("dims", size, low=1)
        faults.one_of("non_finite", self.non_finite, NON_FINITE_INPUT)
        faults.close()

    @property
    def numpy_dtype(self) -> str:
        """Numpy name of the dtype."""
        return INPUT_DTYPES[self.dtype]
