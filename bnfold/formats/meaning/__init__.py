"""What ops mean, each written once, for every format: plain arguments in, neutral ops out.

A reader extracts the arguments of a call as its format writes them (attributes, inputs by opset, a
schema) and hands them to the builder of the op here, one file a family. Nothing here knows of a
framework:

    operands    Tensor, computed while the model runs; Constant, fixed and not loaded until asked
    arguments   axes, sizes, pads, modes: Python numbers, counted from either end
    builder     (operands, arguments) -> Meaning, the neutral ops that do the same, in order
    refusal     NotCoveredError(reason, why): what stands in the way. `steps.nodes_of` makes an
                Opaque of it that says so, the same in every format

Reasons   a weight is computed                NOT_CONSTANT      the type changes        PRECISION
          a rank or size is not known         UNKNOWN_SHAPE     it divides by zero      NON_FINITE
          nothing is known to pass            NOT_LINEAR

    layers        convolution, linear, BatchNorm             selection   slice, split, gather, flip
    arithmetic    add, sub, mul, div, neg, lerp              spatial     pad, resize, pooling
    layout        reshape, transpose, concat, shuffle        activation  relu and its kin
    product       matmul, einsum, attention, softmax         reduction   mean, sum, max

An op of several steps may hold only ops that no plan edits: a reader's node is written whole.
"""
