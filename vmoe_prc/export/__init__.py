"""Trained models for other programs: folders, StableHLO, SavedModel, ONNX.

An export has the outputs of `TrainedModel.forward`: every image is routed separately and no token
is dropped, so that the other images of a batch never change a prediction.
"""
