"""mRoPE positions of each token: time, height and width. Computed on the host, because they depend on the batch's contents.

Sources: Qwen3-VL's `get_rope_index` and `rot_pos_emb` in Hugging Face transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def _runs(is_vision: Tensor) -> list[tuple[int, int, bool]]:
    """[s] bool -> (start, end, is vision) of each run of equal values."""
    edges = (torch.nonzero(is_vision[1:] != is_vision[:-1]).flatten() + 1).tolist()
    bounds = [0, *edges, is_vision.numel()]
    return [(a, b, bool(is_vision[a])) for a, b in pairwise(bounds) if b > a]


def _grid_positions(start: int, height: int, width: int) -> Tensor:
    """[3, height * width] of one picture or one frame that begins at position `start`."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return torch.stack((torch.zeros_like(rows), rows, columns)) + start


def mrope_positions(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    *,
    image_token_id: int,
    video_token_id: int,
    merge_size: int,
) -> tuple[Tensor, Tensor]:
    """Positions [3, b, s] of every token, and per row the position after its last token [b].

    input_ids [b, s]; attention_mask [b, s] (0: padding, which gets position 0); grids [n, 3] in patches, in the order of
    the pictures and videos in the batch. A video's frames are separated by text, a timestamp before each, so each frame
    is a run of its own. Raises ValueError when tokens and grids do not match.
    """
    batch, length = input_ids.shape
    image_grids = [] if image_grid_thw is None else image_grid_thw.tolist()
    frame_grids = [] if video_grid_thw is None else [(h, w) for t, h, w in video_grid_thw.tolist() for _ in range(t)]
    images, frames = iter(image_grids), iter(frame_grids)
    used_images = used_frames = 0
    positions = torch.zeros(3, batch, length, dtype=torch.long)
    after = torch.zeros(batch, dtype=torch.long)
    ids, mask = input_ids.cpu(), None if attention_mask is None else attention_mask.cpu().bool()
    for row in range(batch):
        row_ids = ids[row] if mask is None else ids[row][mask[row]]
        parts, position = [], 0
        is_image, is_video = row_ids == image_token_id, row_ids == video_token_id
        for start, end, vision in _runs(is_image | is_video):
            if not vision:
                parts.append((torch.arange(end - start) + position).expand(3, -1))
                position += end - start
                continue
            if is_image[start]:
                used_images += 1
                grid = next(images, None)
                kind, grid = "image", None if grid is None else grid[1:]
            else:
                used_frames += 1
                kind, grid = "video", next(frames, None)
            if grid is None:
                raise ValueError(f"row {row}: more runs of {kind} tokens than entries in {kind}_grid_thw")
            height, width = grid[0] // merge_size, grid[1] // merge_size
            if height * width != end - start:
                raise ValueError(
                    f"row {row}: {end - start} {kind} tokens at {start}, but its grid has {height} x {width} = {height * width}"
                )
            parts.append(_grid_positions(position, height, width))
            position += max(height, width)
        if parts:
            row_positions = torch.cat(parts, dim=1)
            if mask is None:
                positions[:, row] = row_positions
            else:
                positions[:, row, mask[row]] = row_positions
        after[row] = position
    if used_images != len(image_grids) or used_frames != len(frame_grids):
        raise ValueError(
            f"{len(image_grids)} pictures and {len(frame_grids)} video frames given, but the tokens hold {used_images} and {used_frames}"
        )
    return positions.to(input_ids.device), after.to(input_ids.device)


def packed_positions(input_ids: Tensor, cu_seqlens: Tensor, positions: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Positions [3, 1, t] of a packed row: every document begins at 0.

    input_ids [1, t]; cu_seqlens [documents + 1]; positions: calls `mrope_positions` for ids and mask, one document in each row,
    with the pictures and videos in the order of the documents.
    """
    if input_ids.shape[0] != 1:
        raise ValueError(f"a packed batch has one row, not {input_ids.shape[0]}")
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != input_ids.shape[1]:
        raise ValueError(f"cu_seqlens runs from {bounds[0]} to {bounds[-1]}, the row has {input_ids.shape[1]} tokens")
    lengths = [end - start for start, end in pairwise(bounds)]
    documents = torch.nn.utils.rnn.pad_sequence(input_ids[0].split(lengths), batch_first=True)
    mask = torch.arange(documents.shape[1]) < torch.tensor(lengths)[:, None]
    by_document, _ = positions(documents, mask)
    return by_document[:, mask.to(by_document.device)].unsqueeze(1)


def vision_coordinates(grid_thw: Tensor, merge_size: int) -> Tensor:
    """Row and column of every patch in the processor's order (merge x merge blocks): [patches, 2]."""
    return torch.cat([_frame_coordinates(height, width, merge_size).repeat(frames, 1) for frames, height, width in grid_thw.tolist()])


@functools.lru_cache(maxsize=512)
def _frame_coordinates(height: int, width: int, merge_size: int) -> Tensor:
    """[height * width, 2] of one frame; cached, because many pictures have the same size."""
    shape = (height // merge_size, merge_size, width // merge_size, merge_size)
    rows = torch.arange(height).repeat_interleave(width).view(shape).transpose(1, 2).flatten()
    columns = torch.arange(width).repeat(height).view(shape).transpose(1, 2).flatten()
    return torch.stack((rows, columns), dim=-1)
