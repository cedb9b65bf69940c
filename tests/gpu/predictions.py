"""What one H100 was predicted to take, by counts of kernels and a roofline, before any card was there.

Replayed forwards were predicted with weights channels last and fused norms, neither of which is there.
"""

from __future__ import annotations

PREDICTED: dict[str, tuple[str, str]] = {
    "matmul 8192³, bf16": ("798 TFLOP/s", ""),
    "copy on the card": ("3.0 TB/s", ""),
    "SD 1.5, forward of 2 rows": ("8.2 ms", ""),
    "SD 1.5, replayed forward of 2 rows": ("4.7 ms", "4.7 ms"),
    "SD 1.5, forward of 4 rows": ("14.8 ms", ""),
    "SD 1.5, replayed forward of 4 rows": ("9.2 ms", "9.2 ms"),
    "SD 1.5, forward of 8 rows": ("28 ms", ""),
    "SD 1.5, replayed forward of 8 rows": ("18.4 ms", "18.4 ms"),
    "SD 1.5, forward of 16 rows": ("55 ms", ""),
    "SD 1.5, replayed forward of 16 rows": ("37 ms", "37 ms"),
    "SD 1.5, forward of 32 rows": ("108 ms", ""),
    "SD 1.5, replayed forward of 32 rows": ("73 ms", "73 ms"),
    "SDXL, forward of 2 rows": ("42 ms", ""),
    "SDXL, replayed forward of 2 rows": ("31 ms", "31 ms"),
    "SDXL, forward of 4 rows": ("84 ms", ""),
    "SDXL, replayed forward of 4 rows": ("62 ms", "62 ms"),
    "SDXL, forward of 8 rows": ("167 ms", ""),
    "SDXL, replayed forward of 8 rows": ("124 ms", "124 ms"),
    "SDXL, forward of 16 rows": ("332 ms", ""),
    "SDXL, replayed forward of 16 rows": ("249 ms", "249 ms"),
    "SDXL, forward of 32 rows": ("664 ms", ""),
    "SDXL, replayed forward of 32 rows": ("498 ms", "498 ms"),
    "SD 1.5, host asks for a forward": ("24.7 ms on a slow CPU", ""),
    "SDXL, host asks for a forward": ("48.9 ms on a slow CPU", ""),
    "SD 1.5, kernels of a forward": ("728, and those of biases and layouts", ""),
    "SDXL, kernels of a forward": ("1842, and those of biases and layouts", ""),
    "SD 1.5, memory of a row": ("65 MiB", ""),
    "SDXL, memory of a row": ("158 MiB", ""),
    "SD 1.5, unequal texts over equal ones": ("1.1 or more", "1.0"),
    "VAE, decode of 512×512": ("8 to 13 ms", ""),
    "VAE, decode of 1024×1024": ("32 to 52 ms", ""),
    "VAE, memory of a megapixel": ("1536 MiB", ""),
    "weights from the host's memory": ("20 GB/s", ""),
    "context of another process": ("400 to 600 MiB", "600"),
    "SD 1.5, 8 LoRAs over none": ("1.03", ""),
    "SDXL, 8 LoRAs over none": ("1.03", ""),
    "SD 1.5, step of 1 job": ("18 to 26 ms, by the host", "6.5 ms"),
    "SD 1.5, images a second of 8 jobs, not decoded": ("6 to 7", "9"),
    "SDXL, step of 1 job": ("48 to 60 ms", "36 ms"),
    "SDXL, images a second of 8 jobs, not decoded": ("1.05 to 1.20", "1.5"),
    "SD 1.5, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SDXL, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SD 1.5, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
    "SDXL, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
}
"""By what is measured: what was predicted, and the goal, for one H100."""
