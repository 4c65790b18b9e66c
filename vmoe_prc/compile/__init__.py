"""Compiles the train step of a configuration for accelerators that are not there.

`python -m vmoe_prc.compile --config=configs/imagenet_prc.py --target=v5e:4x4`
"""
