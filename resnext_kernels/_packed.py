"""Weights that an inference module keeps in the form that a kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

MOST_FORMS = 4


@dataclass
class _Forms:
    """What was packed from one state of a weight, which its memory, kept from being used anew, and version tell."""

    weight: Tensor
    version: int
    packed: dict[Hashable, Tensor] = field(default_factory=dict)

    def are_of(self, weight: Tensor) -> bool:
        """Whether the weight is in that state still."""
        mine, its = self.weight, weight
        same = mine.data_ptr() == its.data_ptr() and mine.stride() == its.stride() and mine.shape == its.shape
        return same and self.version == its._version


class PackedWeight:
    """The packed forms of a module's weight, made when first asked for and again when the weight has changed.

    Changes are told by the tensor's memory and version, as autograd tells them: operators in place, `load_state_dict`,
    casts and other tensors are seen; what is written through `.data`, numpy or another process is not. Copies and
    pickles hold nothing.
    """

    def __init__(self) -> None:
        self._forms: _Forms | None = None

    def __reduce__(self):
        return PackedWeight, ()

    def clear(self) -> None:
        """Frees what is held."""
        self._forms = None

    def known(self, weight: Tensor, key: Hashable) -> Tensor | None:
        """What was packed for `key`, if anything was and the weight has not changed since."""
        forms = self._forms
        return forms.packed.get(key) if forms is not None and forms.are_of(weight) else None

    def form(self, weight: Tensor, key: Hashable, pack: Callable[[], Tensor]) -> Tensor | None:
        """What `pack` makes of the weight for `key`; None if nobody could tell when the weight changes."""
        if type(weight) not in (Tensor, nn.Parameter) or weight.is_inference():
            return None
        forms = self._forms
        if forms is None or not forms.are_of(weight):
            forms = self._forms = _Forms(weight.detach(), weight._version)
        packed = forms.packed.get(key)
        if packed is None:
            packed = pack()
            if packed.layout == torch.strided:  # several problems may have one kernel
                packed = next((each for each in forms.packed.values() if torch.equal(each, packed)), packed)
            if len(forms.packed) == MOST_FORMS:
                forms.packed.clear()
            forms.packed[key] = packed
        return packed
