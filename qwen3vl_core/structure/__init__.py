"""The structure of a micro batch, made on the host: which documents, pictures and frames are in it, as tensors of fixed shape.

What the model computes is then a pure function of tensors: nothing between embedding and loss asks the GPU for a number. Imports
neither Megatron nor the model, so that loader processes can make it.
"""
