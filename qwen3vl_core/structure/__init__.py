"""The structure of a micro batch, built on the host: its documents, pictures and frames, as tensors of fixed shape.

The model is then a pure function of tensors, without host synchronization between embedding and loss. Imports neither Megatron
nor the model, so that loader processes can build structures.
"""
