"""A BatchNorm in two parts, of which one goes up and the other down.

    s x + b = (s x) + b                      the value before it carries the scale
    s x + b = s (x + t),  t = b / s          the value before it carries the shift

The scale passes a product, a ReLU or an average that counts zeros above, which the shift cannot;
the shift passes a sum below, which the scale cannot. Or the other way round:
relu(s x + b) = s relu(x + t)  for s > 0.

A residual trunk x is read by more than the BatchNorm, so that nothing above can take both parts; a
ReLU or a padded convolution below can take no shift. But what makes x can make x + t, the
BatchNorm's readers take s, and every other reader takes the shift back: x = (x + t) - t. That is
no more work at run time; docs/last_mile.md says what it gains.

Exact when   NONZERO  (shift up) s != 0 wherever b != 0
             SOLE     (scale up) nothing else reads x, which would have to take 1 / s
Rounding     x + t is rounded where x was: the error of a channel of x grows by |t| / |x|.
             SIZE bounds t by the size of x, which the scales tell: s = gamma / sqrt(var + eps)
             with gamma near 1, so a channel of x is typically of size 1 / rms(s), and
             |t| rms(s) <= LARGEST is asked of every channel. rms: over the channels with s != 0
Source       He et al. 2016, arXiv:1603.05027 (residual networks that need it)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bnfold.algebra.affine import ChannelAffine

LARGEST = 8.0
"""How many times the size of x a shift may be; the error measured is then near twice the floor."""


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """`shift` is what x carries, `back` its inverse, `scale` what is left for the result."""

    shift: ChannelAffine
    back: ChannelAffine
    scale: ChannelAffine


def split(affine: ChannelAffine) -> Parts | None:
    """The parts of `affine`; None if it has only one, or NONZERO or SIZE does not hold."""
    scale, shift = affine.scale, affine.shift
    shifted = shift != 0
    if not np.any(shifted) or np.any(scale[shifted] == 0):
        return None
    with np.errstate(over="ignore", under="ignore"):
        lead = np.divide(shift, scale, out=np.zeros_like(shift), where=shifted)
        rms = np.sqrt(np.mean(np.square(scale[scale != 0])))
        if not np.all(np.abs(lead) * rms <= LARGEST):
            return None
    plain = replace(affine, scale=np.ones_like(scale), shift=lead)
    return Parts(plain, replace(plain, shift=-lead), affine.without_shift())


def apart(affine: ChannelAffine) -> tuple[ChannelAffine, ChannelAffine] | None:
    """The scale, and the shift behind it; None if it has only one of them."""
    if not affine.shifts or np.all(affine.scale == 1):
        return None
    return affine.without_shift(), replace(affine, scale=np.ones_like(affine.scale))
