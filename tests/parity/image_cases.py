"""What the image nodes are asked, here and of ComfyUI: a name, the class and its inputs, images as their shapes.

ComfyUI's answers are golden/nodes_image.npz: its classes were called with these inputs, kornia 0.9.0 beside it.
"""

from __future__ import annotations

from typing import Any

import torch

Shape = tuple[int, int, int, int]
MaskShape = tuple[int, int, int]

SMALL: Shape = (2, 13, 17, 3)
TALL: Shape = (1, 19, 11, 3)
ALPHA: Shape = (1, 9, 15, 4)


def image(shape: Shape) -> torch.Tensor:
    """Return smooth colours with hard-edged discs on them, (B,H,W,C) in 0…1, of 8 bits like most images."""
    batch, height, width, channels = shape
    y = torch.linspace(0, 1, height)[:, None, None]
    x = torch.linspace(0, 1, width)[None, :, None]
    c = torch.arange(1, channels + 1) / channels
    frames = []
    for b in range(batch):
        smooth = 0.5 + 0.5 * torch.sin(7 * (x * c + y * (1.3 - c)) + b)
        disc = (x - 0.4 - 0.1 * b) ** 2 + (y - 0.5) ** 2 < 0.07
        frames.append(torch.where(disc, 1 - smooth * c, smooth))
    return (torch.stack(frames) * 255).round() / 255


def mask(shape: MaskShape) -> torch.Tensor:
    """Return discs with soft edges off the middle, (B,H,W) in 0…1."""
    batch, height, width = shape
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    discs = [0.35 - ((x - 0.4 - 0.15 * b) ** 2 + 1.7 * (y - 0.55) ** 2).sqrt() for b in range(batch)]
    return (torch.stack(discs) * 12 + 0.5).clamp(0, 1)


def drawn(value: Any) -> Any:
    """Return an input with the image, or the mask, that its shape stands for."""
    if not isinstance(value, tuple):
        return value
    return mask(value) if len(value) == 3 else image(value)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "invert": ("ImageInvert", {"image": ALPHA}),
    "batch": ("ImageBatch", {"image1": SMALL, "image2": TALL}),
    "repeat": ("RepeatImageBatch", {"image": SMALL, "amount": 2}),
    "from batch": ("ImageFromBatch", {"image": (4, 3, 5, 3), "batch_index": 2, "length": 9}),
    "beyond the batch": ("ImageFromBatch", {"image": (4, 3, 5, 3), "batch_index": 7, "length": 2}),
    "noise": ("ImageAddNoise", {"image": SMALL, "seed": 2**64 - 5, "strength": 0.37}),
    "size": ("GetImageSize", {"image": SMALL}),
    "yuv": ("ImageRGBToYUV", {"image": SMALL}),
    "rgb": ("ImageYUVToRGB", {"Y": SMALL, "U": (2, 13, 17, 4), "V": (2, 13, 17, 1)}),
    "total pixels": (
        "ImageScaleToTotalPixels",
        {"image": (1, 143, 87, 3), "upscale_method": "nearest-exact", "megapixels": 0.01, "resolution_steps": 1},
    ),
    "total pixels in steps": (
        "ImageScaleToTotalPixels",
        {"image": (1, 143, 87, 3), "upscale_method": "area", "megapixels": 0.013, "resolution_steps": 16},
    ),
    "from the end of the batch": ("ImageFromBatch", {"image": (4, 3, 5, 3), "batch_index": -2, "length": 9}),
    "before the batch": ("ImageFromBatch", {"image": (4, 3, 5, 3), "batch_index": -7, "length": 2}),
    "crop": ("ImageCrop", {"image": SMALL, "width": 7, "height": 5, "x": 3, "y": 4}),
    "crop over the edge": ("ImageCrop", {"image": SMALL, "width": 70, "height": 5, "x": 30, "y": 11}),
    "outpaint": (
        "ImagePadForOutpaint",
        {"image": (2, 33, 25, 3), "left": 8, "top": 16, "right": 0, "bottom": 8, "feathering": 10},
    ),
    "outpaint too small to feather": (
        "ImagePadForOutpaint",
        {"image": SMALL, "left": 8, "top": 0, "right": 8, "bottom": 0, "feathering": 7},
    ),
}

CASES |= {
    f"scale and crop {method}": (
        "ImageScale",
        {"image": SMALL, "upscale_method": method, "width": 21, "height": 9, "crop": "center"},
    )
    for method in ("bicubic", "area", "lanczos", "nearest-exact", "bilinear")
}
CASES |= {
    f"turn {turn}": ("ImageRotate", {"image": SMALL, "rotation": turn})
    for turn in ("none", "90 degrees", "180 degrees", "270 degrees")
}
CASES |= {
    f"flip {way[0]}": ("ImageFlip", {"image": SMALL, "flip_method": way})
    for way in ("x-axis: vertically", "y-axis: horizontally")
}
CASES |= {
    f"scale by {by} {method}": ("ImageScaleBy", {"image": SMALL, "upscale_method": method, "scale_by": by})
    for by, method in ((1.7, "bicubic"), (0.61, "area"), (1.3, "lanczos"), (0.5, "nearest-exact"), (2.3, "bilinear"))
}
CASES |= {
    f"longer side of {'x'.join(map(str, shape[1:3]))}": (
        "ImageScaleToMaxDimension",
        {"image": shape, "upscale_method": "area", "largest_size": 25},
    )
    for shape in (SMALL, TALL, (1, 8, 8, 3))
}
CASES |= {
    f"stitch {direction} {'matched' if match else 'centred'} {spacing} {color}": (
        "ImageStitch",
        {
            "image1": first,
            "image2": second,
            "direction": direction,
            "match_image_size": match,
            "spacing_width": spacing,
            "spacing_color": color,
        },
    )
    for direction, match, spacing, color, first, second in (
        ("right", True, 0, "white", SMALL, TALL),
        ("left", True, 4, "red", TALL, SMALL),
        ("down", False, 3, "white", ALPHA, SMALL),
        ("up", False, 2, "blue", SMALL, TALL),
        ("up", True, 0, "green", SMALL, ALPHA),
        ("right", False, 6, "black", TALL, ALPHA),
    )
}
CASES |= {
    f"fit {width}x{height} {color} {method}": (
        "ResizeAndPadImage",
        {
            "image": SMALL,
            "target_width": width,
            "target_height": height,
            "padding_color": color,
            "interpolation": method,
        },
    )
    for width, height, color, method in ((20, 40, "white", "area"), (50, 21, "black", "lanczos"))
}
CASES |= {
    f"blend {mode}": (
        "ImageBlend",
        {"image1": SMALL, "image2": second, "blend_factor": 0.7, "blend_mode": mode},
    )
    for mode, second in (
        ("normal", ALPHA),
        ("multiply", TALL),
        ("screen", SMALL),
        ("overlay", TALL),
        ("soft_light", TALL),
        ("difference", TALL),
    )
}
CASES |= {
    f"blur {radius} {sigma}": ("ImageBlur", {"image": SMALL, "blur_radius": radius, "sigma": sigma})
    for radius, sigma in ((1, 1.0), (5, 0.4), (12, 10.0))
}
CASES |= {
    f"sharpen {radius} {sigma} {alpha}": (
        "ImageSharpen",
        {"image": SMALL, "sharpen_radius": radius, "sigma": sigma, "alpha": alpha},
    )
    for radius, sigma, alpha in ((1, 1.0, 1.0), (7, 0.3, 0.15), (3, 5.0, 5.0))
}
CASES |= {
    f"{colors} colours {dither}": (
        "ImageQuantize",
        {"image": (2, 25, 31, 3), "colors": colors, "dither": dither},
    )
    for colors, dither in (
        (256, "none"),
        (7, "floyd-steinberg"),
        (5, "bayer-2"),
        (16, "bayer-4"),
        (2, "bayer-8"),
        (9, "bayer-16"),
    )
}
CASES |= {
    f"edges {low} {high} of {'x'.join(map(str, shape))}": (
        "Canny",
        {"image": shape, "low_threshold": low, "high_threshold": high},
    )
    for low, high, shape in ((0.4, 0.8, (1, 61, 47, 3)), (0.1, 0.3, (2, 32, 45, 3)), (0.7, 0.9, (1, 40, 40, 1)))
}

BOXES = [
    [{"x": 2, "y": 1, "width": 6.5, "height": 5}, {"x": 4, "y": 3, "width": 20, "height": 4}],
    [{"x": 90, "y": 90, "width": 4, "height": 4}],
]
CASES |= {
    f"crop by boxes {keep} {padding}": (
        "CropByBBoxes",
        {
            "image": (3, 41, 33, 3),
            "bboxes": BOXES,
            "output_width": 72,
            "output_height": 64,
            "padding": padding,
            "keep_aspect": keep,
        },
    )
    for keep, padding in (("stretch", 0), ("pad", 0), ("stretch", 3))
}
FOUND = [
    {"x": 5, "y": 4, "width": 20, "height": 12, "score": 0.87, "label": "dog"},
    {"x": 12, "y": 10, "width": 30.5, "height": 25, "score": 0.5, "label": "traffic light"},
    {"x": 1, "y": 30, "width": 9, "height": 9, "label": "unicorn"},
]
CASES |= {
    "boxes on images": ("DrawBBoxes", {"image": (2, 48, 56, 3), "bboxes": [FOUND]}),
    "boxes on some images": ("DrawBBoxes", {"image": (2, 48, 56, 3), "bboxes": [FOUND[:1]]}),
    "boxes alone": ("DrawBBoxes", {"bboxes": FOUND}),
}
CASES |= {
    f"colours by {method} of {stats} {strength}": (
        "ColorTransfer",
        {
            "image_target": (3, 13, 17, 3),
            "image_ref": references,
            "method": method,
            "source_stats": {"source_stats": stats, "target_index": 1},
            "strength": strength,
        },
    )
    for method in ("reinhard_lab", "mkl_lab", "histogram")
    for stats, strength, references in (
        ("per_frame", 1.0, (1, 9, 15, 3)),
        ("per_frame", 0.4, (2, 9, 15, 3)),
        ("uniform", 1.0, (2, 9, 15, 3)),
        ("target_frame", 1.3, (2, 9, 15, 3)),
    )
}
CASES |= {
    f"object by lanczos {width}x{height} {grow} {factor}": (
        "ImageCropToMask",
        {
            "images": images,
            "masks": masks,
            "width": width,
            "height": height,
            "pad_factor": factor,
            "grow_mask": grow,
            "background": "#204080",
        },
    )
    for width, height, grow, factor, images, masks in (
        (64, 64, 0, 1.0, (2, 41, 33, 3), (1, 41, 33)),
        (64, 96, 3, 1.4, (2, 41, 33, 4), (2, 20, 30)),
        (80, 64, -2, 2.0, (1, 120, 90, 3), (1, 120, 90)),
    )
}
