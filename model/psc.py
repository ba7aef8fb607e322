"""PSC and TMRA's router: prompt + patch embeddings -> task level, relevance map, crop boxes.

Every operation here has a standard ONNX counterpart that TensorRT takes too; the numpy twin of
the window selection is `geomag_edge.views.select_windows`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, SiglipTextModel

from geomag_edge.errors import CheckpointError
from geomag_edge.model.config import GeoMagConfig
from geomag_edge.views import PscSettings, windows_of


class PromptTower(nn.Module):
    """A CLIP or SigLIP text tower -> one embedding of the prompt.

    Both families pool the last position: CLIP's end-of-text token is last because prompts are
    not padded, SigLIP pads to its fixed length as it was trained (`prompt.pad_to`).
    """

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        prompt = config.prompt_config
        embed_dim = config.psc["embed_dim"]
        self.causal = prompt.model_type == "clip_text_model"
        if self.causal:
            if not getattr(prompt, "is_causal", True):
                raise CheckpointError(
                    "the CLIP prompt tower says is_causal false, and its last word would not "
                    "be read as it was trained: give one that is causal"
                )
            self.tower: nn.Module = CLIPTextModel._from_config(prompt)
            self.projection: nn.Module = nn.Linear(prompt.hidden_size, embed_dim, bias=False)
        else:
            if prompt.projection_size != embed_dim:
                raise CheckpointError(
                    f"the SigLIP prompt tower projects to {prompt.projection_size}, "
                    f"psc.embed_dim is {embed_dim}: they must be equal"
                )
            self.tower = SiglipTextModel._from_config(prompt)
            self.projection = nn.Identity()

    def forward(self, prompt_ids: Tensor, last: Tensor | None = None) -> Tensor:
        """int64 [B,L] -> [B,De]; `last` int64 [B] says where right-padded prompts of CLIP end."""
        hidden = self.tower.embeddings(input_ids=prompt_ids)
        length = prompt_ids.shape[1]
        mask = None
        if self.causal:
            position = torch.arange(length, device=prompt_ids.device)
            mask = (position[:, None] >= position[None, :])[None, None]  # [1,1,L,L]
        for layer in self.tower.encoder.layers:
            hidden = layer(hidden, attention_mask=mask, is_causal=False)
        hidden = self.tower.final_layer_norm(hidden)
        if last is None:
            pooled = hidden[:, -1]
        else:
            pooled = hidden[torch.arange(len(last), device=last.device), last]
        return self.projection(pooled) if self.causal else self.tower.head(pooled)


class WindowSelection(nn.Module):
    """Relevance map -> the K best windows: sums over all of them, then unrolled greedy suppression.

    A row of `spans` has ones where a window's rows (or columns) are, so the sums only add, as the
    numpy twin does: where they are exact, equal windows tie in every engine. And no parser makes a
    loop of them, as TensorRT's before 10.8 does of CumSum, which no CUDA graph may hold. They are
    no matrix products: beside half graphs, which keep them in float32, TensorRT for RTX has none
    of these for compute capability 7.5.
    """

    def __init__(self, psc: PscSettings, grid: int):
        super().__init__()
        self.psc, self.grid = psc, grid
        windows = len(windows_of(grid, psc.windows))
        spans = len(_spans(windows_of(grid, psc.windows)))
        shapes = {
            "spans": (spans, grid), "places": (windows,), "boxes": (windows, 4), "side": (windows,)
        }  # fmt: skip
        for name, shape in shapes.items():
            dtype = torch.int64 if name == "places" else torch.float32
            self.register_buffer(name, torch.empty(shape, dtype=dtype), persistent=False)
        self.reset_constants()

    def reset_constants(self) -> None:
        """Fills the window table; `from_pretrained` builds modules without their constants."""
        windows = windows_of(self.grid, self.psc.windows)
        spans = _spans(windows)
        patches = np.arange(self.grid)
        inside = (patches >= spans[:, :1]) & (patches < spans[:, 1:])
        self.spans.copy_(torch.from_numpy(inside))  # [Ns,G]
        row_of = {tuple(span): i for i, span in enumerate(spans.tolist())}
        places = [
            row_of[r0, r1] * len(spans) + row_of[c0, c1] for r0, c0, r1, c1 in windows.tolist()
        ]
        self.places.copy_(torch.tensor(places))  # [Nw], in the flat table of sums [Ns,Ns]
        r0, c0, r1, c1 = torch.from_numpy(windows).unbind(1)
        self.boxes.copy_(torch.stack([c0, r0, c1, r1], 1))  # [Nw,4] x0,y0,x1,y1 in patches
        self.side.copy_(r1 - r0)  # [Nw]

    def forward(self, relevance: Tensor, view_box: Tensor) -> tuple[Tensor, Tensor]:
        """relevance [G,G], view_box [4] px -> boxes [K,4] px, scores [K]."""
        # Whole numbers, exact in half too.
        windows, side, spans = self.boxes.float(), self.side.float(), self.spans.float()
        rows = (spans[:, :, None] * relevance).sum(1)  # [Ns,G]
        sums = (rows[:, None] * spans).sum(2)  # [Ns,Ns], rows of one window, columns of another
        scores = sums.reshape(-1)[self.places] / side
        area = side * side
        cell = (view_box[2] - view_box[0]) / self.grid
        origin = torch.cat([view_box[:2], view_box[:2]])
        chosen, kept = [], []
        for _ in range(self.psc.max_crops):
            best = scores[None].argmax(1)  # [1]; TensorRT has no ArgMax over a single axis
            box = windows[best]  # [1,4]
            chosen.append(origin + box * cell)
            kept.append(scores[best])
            low = torch.maximum(box[:, :2], windows[:, :2])
            high = torch.minimum(box[:, 2:], windows[:, 2:])
            inner = (high - low).clamp(min=0)
            common = inner[:, 0] * inner[:, 1]
            iou = common / (area[best] + area - common)
            scores = torch.where(iou > self.psc.overlap, torch.full_like(scores, -1.0), scores)
        return torch.cat(chosen), torch.cat(kept)


def _spans(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct spans of rows that windows [Nw,4] have, in order: [Ns,2] first and end."""
    return np.unique(windows[:, [0, 2]], axis=0)


class PromptSelector(nn.Module):
    """`psc.onnx` up to `boxes` (`psc_select.onnx`)."""

    def __init__(self, config: GeoMagConfig):
        super().__init__()
        embed_dim = config.psc["embed_dim"]
        self.grid = config.grid
        self.prompt_tower = PromptTower(config)
        self.router = nn.Sequential(
            nn.LayerNorm(embed_dim),
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, 3),
        )
        self.relevance_scale = nn.Parameter(torch.tensor(10.0))
        self.relevance_bias = nn.Parameter(torch.tensor(-1.0))
        self.select = WindowSelection(PscSettings.from_json(config.psc), config.grid)

    def relevance(self, embeds: Tensor, prompt: Tensor) -> Tensor:
        """embeds [1,P,De] (unit length), prompt [1,De] -> logits [G,G]."""
        similarity = embeds @ F.normalize(prompt, dim=-1).unsqueeze(-1)  # [1,P,1]
        logits = self.relevance_scale * similarity + self.relevance_bias
        return logits.reshape(self.grid, self.grid)

    def forward(
        self, embeds: Tensor, prompt_ids: Tensor, view_box: Tensor, image_shape: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chooses windows inside one view.

        Args:
            embeds: [1,P,De] of the view.
            prompt_ids: int64 [1,L].
            view_box: f32[4], the square that the view shows, pixels of the image.
            image_shape: int64[3], H, W, 3.

        Returns:
            granularity [1,3] logits, relevance [G,G] in 0..1, boxes [K,4] px, scores [K].
        """
        prompt = self.prompt_tower(prompt_ids)
        granularity = self.router(prompt)
        relevance = torch.sigmoid(self.relevance(embeds, prompt).float())
        relevance = relevance * _inside(view_box, image_shape, self.grid)
        boxes, scores = self.select(relevance, view_box)
        return granularity, relevance, boxes, scores


def view_box_of(image_shape: Tensor) -> Tensor:
    """int64[3] (H, W, 3) -> f32[4]: the centred square of the longer side around the image."""
    size = image_shape[:2].to(torch.float32)  # H, W
    side = size.max()
    y0x0 = (size - side) / 2
    x0y0 = y0x0.flip(0)
    return torch.cat([x0y0, x0y0 + side])


def _inside(view_box: Tensor, image_shape: Tensor, grid: int) -> Tensor:
    """[G,G]: 1 where a patch's centre lies inside the image, else 0."""
    cell = (view_box[2] - view_box[0]) / grid
    centre = (torch.arange(grid, device=view_box.device, dtype=torch.float32) + 0.5) * cell
    x, y = view_box[0] + centre, view_box[1] + centre
    height, width = image_shape[0], image_shape[1]
    in_x = (x >= 0) & (x < width)
    in_y = (y >= 0) & (y < height)
    return (in_y[:, None] & in_x[None, :]).to(torch.float32)
