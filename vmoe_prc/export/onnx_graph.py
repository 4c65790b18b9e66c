"""Builds an ONNX graph node by node."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# 20 has GELU.
OPSET = 20
# The IR version of opset 20; older programs do not read the opset either.
IR_VERSION = 9
# A protocol buffer holds 2 GiB; larger parameters go into a file next to the model.
MAX_BYTES = 2**31 - 2**27

_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


class Graph:
    """A graph that grows; values are known by their names."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Adds a constant array; returns its name."""
        name = f"c{len(self._constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self._constants.append(numpy_helper.from_array(array.reshape(np.shape(value)), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the name of the output."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        names = [f"n{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def reshape(self, x: str, *shape: int) -> str:
        """Reshapes: -1 is the remaining size, 0 the size of the input on this axis."""
        return self.op("Reshape", x, self.constant(shape, np.int64))

    def model(
        self,
        inputs: Mapping[str, Sequence[Any]],
        outputs: Mapping[str, tuple[str, str, Sequence[Any]]],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Completes the model.

        Args:
          inputs: Shapes of the float32 inputs; a text is a size that is not fixed.
          outputs: Value, dtype and shape of each output by name.
          metadata: Texts that the model carries.

        Raises:
          onnx.checker.ValidationError: If the graph is wrong.
        """
        for name, (value, *_) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "vmoe_prc",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [
                helper.make_tensor_value_info(name, _TYPES[dtype], shape)
                for name, (_, dtype, shape) in outputs.items()
            ],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vmoe_prc"
        )
        helper.set_model_props(model, dict(metadata))
        if model.ByteSize() < MAX_BYTES:
            onnx.checker.check_model(model)
        return model
