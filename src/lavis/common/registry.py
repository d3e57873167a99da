"""Names to classes, as LAVIS's `registry`: how `load_model("blip2_cir_align_prompt", ...)` finds its class."""

from collections.abc import Callable
from typing import TypeVar

from sprc.core.errors import InputError

ModelClass = TypeVar("ModelClass", bound=type)


class Registry:
    """Model classes by their public name."""

    def __init__(self):
        self._models: dict[str, type] = {}

    def register_model(self, name: str) -> Callable[[ModelClass], ModelClass]:
        """Class decorator. Raises KeyError if another class has the name already."""

        def register(cls: ModelClass) -> ModelClass:
            if self._models.get(name, cls) is not cls:
                raise KeyError(f"model name {name!r} is taken by {self._models[name].__name__}")
            self._models[name] = cls
            return cls

        return register

    def get_model_class(self, name: str) -> type:
        """The class registered as `name`. Raises InputError that lists the known names."""
        if name not in self._models:
            raise InputError(f"unknown model {name!r}: this fork has {', '.join(self.list_models())}")
        return self._models[name]

    def list_models(self) -> list[str]:
        return sorted(self._models)


registry = Registry()
