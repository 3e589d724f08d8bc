"""Weights that an inference module keeps in the form that a kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST_FORMS = 4


def _state(weight: Tensor) -> tuple:
    return weight._version, weight.data_ptr(), weight.stride(), weight.shape


@dataclass(frozen=True)
class _Forms:
    """What was packed from one state of a weight, whose memory is kept so that nothing else can come to lie there."""

    state: tuple
    kept: Tensor
    packed: dict[Hashable, Tensor]


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

    def known(self, weight: Tensor, problem: Hashable) -> Tensor | None:
        """The form for a problem, if there is one and the weight has not changed since."""
        forms = self._forms
        try:
            return forms.packed.get(problem) if forms is not None and forms.state == _state(weight) else None
        except RuntimeError:  # another kind of tensor has taken the weight's place
            return None

    def form(self, weight: Tensor, problem: Hashable, pack: Callable[[], Tensor]) -> Tensor | None:
        """What `pack` makes of the weight for a problem; None if nobody could tell when the weight changes."""
        if type(weight) not in (Tensor, nn.Parameter) or weight.is_inference():
            return None
        forms, state = self._forms, _state(weight)
        if forms is None or forms.state != state:
            forms = self._forms = _Forms(state, weight.detach(), {})
        packed = forms.packed.get(problem)
        if packed is None:
            packed = pack()
            if packed.layout == torch.strided:  # several problems may have one kernel
                packed = next((each for each in forms.packed.values() if torch.equal(each, packed)), packed)
            if len(forms.packed) == MOST_FORMS:
                forms.packed.clear()
            forms.packed[problem] = packed
        return packed
