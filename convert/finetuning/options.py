"""Options of a fine-tuning, typed; each may be left out."""

from __future__ import annotations

from convert.options import SourceOptions, StrPath


class FinetuneOptions(SourceOptions, total=False):
    """Options of `convert.finetune`. Without a setting of the training, BiT-HyperRule chooses it."""

    steps: int | None
    """Number of optimizer steps; warm-up and boundaries stay at the same parts of the training."""
    batch: int | None
    """Images for each step; default 512."""
    micro_batch: int | None
    """Images that go through the network at once, a divisor of the batch; default by their size."""
    lr: float | None
    """Learning rate after the warm-up; default 0.003."""
    size: int | None
    """Edge of the square that the network sees, in pixels; default 128 for images of less than 96×96, else 480."""
    mixup: float | None
    """Both parameters of the Beta distribution of mixup's λ; default 0.1 from 20,000 images on, else 0."""
    flip: bool | None
    """Flip half of the training images horizontally; default True."""
    batch_scaling: bool
    """Multiply the rate by batch / 512, and the number of steps by 512 / batch."""
    precision: str | None
    """`fp32`, or `bf16`: convolutions in bfloat16, weights in float32."""
    seed: int | None
    """Seed of the order of the images, their crops and mixtures, and of the split; default 0."""
    evaluate_every: int | None
    """Steps between two evaluations; default a tenth of all."""
    save_every: int | None
    """Steps between two checkpoints to resume from; default a tenth of all. One is written every ten minutes too."""
    workers: int | None
    """Processes that prepare images; default 0 if all images fit into a gigabyte, else one for each other core."""
    keep_head: bool
    """Train the head that the checkpoint has, of as many classes, in place of a new one of zeros."""
    skip_bad_images: bool
    """Leave out images that cannot be read, and count them."""
    verify: bool
    """Verify the result; default True."""
    force: bool
    """Begin again, and replace an earlier result."""
    recordings: StrPath | None
    """Folder for the recording with which the result is compared, see `VerifyOptions`."""
