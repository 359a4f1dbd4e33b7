"""NVIDIA's TensorRT: the library found and checked, engines built, and run over torch's memory.

`library` is the only one that imports `tensorrt`, and none of them does so before it is asked to build or to run.
"""
