"""Keyword options of the functions in `convert.api`, typed; every option may be left out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from convert.signing.check import Signature

StrPath = str | os.PathLike[str]


class SourceOptions(TypedDict, total=False):
    """Options of every function that opens a checkpoint."""

    checkpoints: StrPath
    """Folder for downloaded and generated checkpoints; default `checkpoints` in the current folder."""
    mirror: str | None
    """URL to download published files from; default Google's bucket."""
    source_ws_eps: float | None
    """The epsilon of weight standardization that the checkpoint was trained with, if its files do not state it:
    1e-10 in Google's code, 1e-8 in transformers and timm."""


class VerifyOptions(TypedDict, total=False):
    """Options of a verification."""

    full: bool
    """Run every installed reference implementation; default True for `verify`, False for `convert`."""
    references: Sequence[str]
    """Names of reference implementations that must run: `pytorch`, `flax`, `keras`, `timm`,
    `transformers`, `onnxruntime` or `keras-saved`. They replace the choice of `full`."""
    recordings: StrPath | None
    """Folder for recordings that a conversion makes; default `recordings` in `cache_folder()`."""


class ConvertOptions(SourceOptions, VerifyOptions, total=False):
    """Options of a conversion."""

    force: bool
    """Replace an existing conversion. Folders that hold other files are never replaced."""
    verify: bool
    """Verify the result; default True."""
    head: str
    """`keep` (default), `drop`, or `new:N` for a head of zeros with N classes, for fine-tuning."""
    labels: StrPath | None
    """File with the names of the classes, for a head that has none or is new: one a line, or JSON, see
    `convert.checkpoints.labels`."""
    replace_labels: bool
    """Let `labels` replace the names that the head has; without it they are an error."""
    dtype: str | None
    """Round every weight to `bfloat16`, `float16`, `float32` or `float64`; default: unchanged."""
    ws_eps: str
    """`keep` (default), or `compensate`: scale kernels so that a library with a different
    weight-standardization epsilon computes the same function. For inference only."""
    profile: str | None
    """Preprocessing to store: `google`, `google:SIZE`, `timm` or `transformers`; default: the layout's own, or that of
    a fine-tuned network."""
    max_shard_size: str | None
    """Largest size of one weights file, `5GB` for example; for the layout `transformers`."""
    allow_nonfinite: bool
    """Convert weights that hold NaN or infinity. Such weights do not pass verification."""


class EvaluateOptions(SourceOptions, total=False):
    """Options of an evaluation."""

    split: str | None
    """`train`, `val` or the name of a split; default: the validation images where there are splits, else all."""
    skip_bad_images: bool
    """Leave out images that cannot be read, and list them; default False: the first is an error."""
    seed: int
    """Seed of the split of data that are not split yet, as for fine-tuning; default 0."""
    preprocessing: str
    """`same` (default): the same pixels for all, as the first checkpoint states that states any; `each`: as each
    checkpoint states; `library`: by each library's own pipeline, where it has one."""
    batch: int
    """Images that a network is given at once; default 8."""
    report: StrPath | None
    """Folder for `evaluation.json` and `evaluation.html`, or a file for one of them; default None: not written."""


class TrustOptions(TypedDict, total=False):
    """The signer whose signature is checked: a key, or an identity that sigstore knows."""

    public_key: StrPath | None
    """File of an elliptic-curve public key, in PEM format."""
    identity: str | None
    """Identity of the signer, such as an e-mail address; checked with sigstore over the network."""
    identity_provider: str | None
    """URL of the identity provider that vouches for `identity`."""


class CheckOptions(SourceOptions, VerifyOptions, TrustOptions, total=False):
    """Options of the verification of a conversion, which may be signed."""

    signature: Signature | None
    """A signature that `check_signature` has checked, in place of a key or an identity."""
    replay: bool
    """Convert again from the source, and compare the bytes of every file with the folder's."""
    gradients: bool
    """Compare loss and gradients of two automatic differentiations, PyTorch's and JAX's; needs both."""
    report: StrPath | None
    """File for the new report: a page if the name ends with `.html`, else JSON."""


class SignOptions(TypedDict, total=False):
    """The signer: a key, or whoever runs this."""

    key: StrPath | None
    """File of an elliptic-curve private key, in PEM format."""
    password: str | None
    """Password of an encrypted key."""
    sigstore: bool
    """Sign without a key: sigstore asks who you are, in a browser or from the machine's identity provider."""
    reverify: bool
    """Repeat the quick verification first; default False."""
    source: StrPath | None
    """The checkpoint that was converted, if it was moved."""
    source_ws_eps: float | None
    """The epsilon that it was trained with, if an earlier version converted it; else the manifest states it."""
    recordings: StrPath | None
    """Folder of the recordings that the folder was compared with; default as for a verification."""


class PushOptions(TrustOptions, total=False):
    """Options of a publication."""

    private: bool
    """Make a new repository private."""
    create_pr: bool
    """Open a pull request; the branch stays as it is."""
    revision: str | None
    """Branch to push to; default: the main branch."""
    message: str | None
    """Message of the commit."""
    extra: Mapping[str, bytes]
    """Further files by name; a `README.md` replaces the model card. A signed folder takes none."""
    sign: StrPath | None
    """Sign the folder and the model card with this private key, in PEM format, before they are sent."""
    password: str | None
    """Password of an encrypted key."""
    sigstore: bool
    """Sign with sigstore, without a key."""
    require_signature: bool
    """Refuse a folder without a valid signature of `public_key` or `identity`."""
    reverify: bool
    """Repeat the quick verification before anything is sent; default True."""
    source: StrPath | None
    """The checkpoint that was converted, if it was moved; the repeated verification reads it."""
    source_ws_eps: float | None
    """The epsilon that it was trained with, if an earlier version converted it; else the manifest states it."""
    recordings: StrPath | None
    """Folder of the recordings that the folder was compared with; default as for a verification."""
