"""patch merges, swap changes the type, assignment replaces; mixins compose in the order of the MRO."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import attrs
import pytest

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    Lazy,
    PatchError,
    UnknownField,
    call,
    check,
    is_mixin,
    patch,
    replace,
    swap,
    warnings,
)


class Optimizer(Lazy[Any], abstract=True):
    lr: float = 1e-3


class AdamW(Optimizer):
    betas: tuple[float, float] = (0.9, 0.95)
    shape: int = 1


class Muon(Optimizer):
    lr = 0.02
    momentum: float = 0.95
    betas: tuple[float, float] = (0.8, 0.9)
    shape: str = "flat"


class Schedule(Lazy[Any], abstract=True):
    pass


class GPipe(Schedule):
    pass


class ZeroBubble(Schedule):
    delay: int = attrs.field(default=0, validator=attrs.validators.ge(0))


class Pipeline(Lazy[Any]):
    stages: int = 1
    microbatches: int = 1
    schedule: Schedule = GPipe()


class Base(Lazy[Any], abstract=True):
    optimizer: Optimizer = AdamW(lr=3e-4)
    pipeline: Pipeline = Pipeline(microbatches=4)
    extra: Pipeline = REQUIRED
    maybe: Pipeline | None = None


class PP4(Base):
    pipeline = patch(Pipeline, stages=4, microbatches=16)


class ZeroBubbleMixin(Base):
    pipeline = patch(Pipeline, schedule=ZeroBubble(delay=1))


def test_patches_fold_from_base_to_derived_through_mixins():
    class Both(ZeroBubbleMixin, PP4):
        pipeline = patch(Pipeline, schedule=patch(ZeroBubble, delay=2))

    pipeline = Both().pipeline
    assert (pipeline.stages, pipeline.microbatches) == (4, 16)
    assert isinstance(pipeline.schedule, ZeroBubble)
    assert pipeline.schedule.delay == 2
    assert isinstance(PP4().pipeline.schedule, GPipe)


def test_a_mixin_of_the_common_base_is_checked_when_it_is_written():
    """Edge 24: over a bare Lazy it could not know what it patches."""
    with pytest.raises(
        UnknownField, match=r"patch\(Pipeline, ...\): no field 'stagez'; did you mean 'stages'.*test_patch"
    ):

        class Typo(Base):
            pipeline = patch(Pipeline, stagez=3)

    with pytest.raises(UnknownField, match="no field 'pipeline' to override"):

        class Bare(Lazy[Any]):
            pipeline = patch(Pipeline, stages=3)


def test_an_assignment_left_of_a_patch_discards_it_and_a_warning_says_so():
    """Edge 22: Python-correct and surprising."""

    class Assigns(Base):
        pipeline = Pipeline(stages=2)

    class Kept(ZeroBubbleMixin, Assigns):
        pass

    class Lost(Assigns, ZeroBubbleMixin):
        pass

    assert isinstance(Kept().pipeline.schedule, ZeroBubble)
    assert isinstance(Lost().pipeline.schedule, GPipe)
    assert warnings(Kept()) == []
    (text,) = warnings(Lost())
    assert "Assigns assigns pipeline, which discards the patch of ZeroBubbleMixin" in text
    assert "put ZeroBubbleMixin first" in text
    assert text.count("test_patch_swap.py:") == 2


def test_a_value_bound_early_in_a_class_body_is_warned_about():
    """Edge 21: `Pipeline(stages=stages)` takes the local value; a subclass that changes it changes nothing."""

    class Early(Lazy[Any]):
        stages: int = 2
        pipeline: Pipeline = Pipeline(stages=stages)
        nested: tuple[Pipeline, ...] = (Pipeline(stages=stages),)

    class Sub(Early):
        stages = 8

    assert Sub().pipeline.stages == 2
    found = warnings(Sub())
    assert len(found) == 2
    assert "stages=stages takes the value of stages in this class body" in found[0]
    assert "@derived method as self.stages" in found[0]
    assert "test_patch_swap.py:" in found[0]


def test_patching_through_the_widest_interface_that_has_the_field():
    """Edge 17: mypy narrows through overrides, so patch(Optimizer, ...) is the idiom; it works for whatever is there."""

    class Slow(Base):
        optimizer = patch(Optimizer, lr=1e-4)

    class Other(Slow):
        optimizer = swap(Muon)

    class Slower(Other):
        optimizer = patch(Optimizer, lr=1e-5)

    assert type(Slow().optimizer) is AdamW
    assert Slow().optimizer.lr == 1e-4
    assert (type(Slower().optimizer), Slower().optimizer.lr) == (Muon, 1e-5)


def test_a_patch_of_a_class_that_could_never_stand_there_is_refused_at_its_line():
    with pytest.raises(
        PatchError, match=r"Wrong.optimizer: expected a patch of Optimizer, got patch\(Pipeline.*py:\d+"
    ):

        class Wrong(Base):
            optimizer = patch(Pipeline, stages=1)

    with pytest.raises(PatchError, match=r"Pipeline.stages: expected int, got patch\(GPipe\); write a plain value"):
        Pipeline(stages=patch(GPipe))
    with pytest.raises(PatchError, match=r"expected a patch of Schedule, got patch\(AdamW"):
        patch(Pipeline, schedule=patch(AdamW, lr=1.0))


def test_a_patch_that_finds_something_else_says_what_it_found_and_what_to_write():
    class Momentum(Base):
        optimizer = patch(Muon, momentum=0.5)

    with pytest.raises(PatchError) as raised:
        _ = Momentum().optimizer
    text = str(raised.value)
    assert text.startswith("Momentum.optimizer: patch(Muon, momentum=0.5) (tests/dsl/test_patch_swap.py:")
    assert "the field holds an AdamW; write Muon(...) to replace it, swap(Muon, ...) to change its type" in text
    assert "after this class" in text
    assert is_mixin(Momentum())
    assert not is_mixin(PP4())

    class Whole(Momentum):
        optimizer = Muon()

    class WithBase(Momentum):
        pass

    assert not is_mixin(Whole())


def test_a_patch_of_none_says_so():
    class Mine(Base):
        maybe = patch(Pipeline, stages=2)

    with pytest.raises(PatchError, match=r"the field holds None; write Pipeline\(...\)"):
        _ = Mine().maybe


def test_a_patch_of_a_field_that_nothing_fills_makes_the_thing_unless_it_is_abstract():
    class Mine(Base):
        extra = patch(Pipeline, stages=2)

    assert Mine().extra.stages == 2

    class Open(Lazy[Any]):
        optimizer: Optimizer = REQUIRED

    class Patched(Open):
        optimizer = patch(Optimizer, lr=1.0)

    with pytest.raises(
        PatchError, match="nothing fills the field, and Optimizer is abstract; assign a concrete Optimizer"
    ):
        _ = Patched().optimizer
    assert is_mixin(Patched())


def test_values_in_patches_are_checked_where_they_stand():
    with pytest.raises(ConfigError) as raised:
        patch(Pipeline, stagez=1, microbatches="x", schedule=GPipe)
    assert len(raised.value.problems) == 3
    assert "write GPipe() with brackets" in str(raised.value)
    with pytest.raises(ConfigError, match="must be >= 0"):
        patch(ZeroBubble, delay=-1)


def test_patches_of_one_instance_stack():
    one = PP4(pipeline=patch(Pipeline, stages=8))
    two = replace(one, pipeline=patch(Pipeline, schedule=ZeroBubble()))
    assert (two.pipeline.stages, two.pipeline.microbatches) == (8, 16)
    assert isinstance(two.pipeline.schedule, ZeroBubble)
    assert replace(two, pipeline=Pipeline()).pipeline.stages == 1
    assert replace(PP4(pipeline=Pipeline(stages=3)), pipeline=patch(Pipeline, microbatches=2)).pipeline.stages == 3


def test_swap_keeps_what_was_set_and_both_types_share():
    class Mine(Base):
        optimizer = swap(Muon, momentum=0.5)

    optimizer = Mine().optimizer
    assert isinstance(optimizer, Muon)
    assert (optimizer.lr, optimizer.momentum, optimizer.betas) == (3e-4, 0.5, (0.8, 0.9))

    class Unset(Base):
        optimizer = AdamW()

    class Swapped(Unset):
        optimizer = swap(Muon)

    assert Swapped().optimizer.lr == 0.02  # nothing was set, so Muon's own default holds


def test_swap_leaves_behind_a_value_that_only_shares_its_name():
    class Mine(Base):
        optimizer = AdamW(shape=3, lr=0.5)

    class Swapped(Mine):
        optimizer = swap(Muon)

    assert (Swapped().optimizer.shape, Swapped().optimizer.lr) == ("flat", 0.5)


def test_swap_keeps_patches_that_the_instance_holds():
    class Outer(Lazy[Any]):
        inner: Pipeline = Pipeline()

    class Other(Lazy[Any]):
        inner: Pipeline = Pipeline(stages=2)

    class Root(Lazy[Any]):
        outer: Any = Outer(inner=patch(Pipeline, microbatches=9))

    swapped = Root(outer=swap(Other, inner=patch(Pipeline, stages=5))).outer
    assert isinstance(swapped, Other)
    assert (swapped.inner.stages, swapped.inner.microbatches) == (5, 9)


def test_a_swap_to_a_class_that_does_not_belong_is_refused():
    with pytest.raises(PatchError, match=r"expected a patch of Optimizer, got swap\(Pipeline"):

        class Wrong(Base):
            optimizer = swap(Pipeline)


@pytest.mark.parametrize("word", [patch, swap])
def test_the_words_explain_what_they_take(word):
    with pytest.raises(
        PatchError, match=rf"{word.__name__}\(\) takes a Lazy class first, not 3 \(.*test_patch_swap.py:\d+\)"
    ):
        word(3)
    with pytest.raises(PatchError, match=rf"write {word.__name__}\(AdamW, field=value\)"):
        word(AdamW(), lr=1.0)
    with pytest.raises(PatchError, match=r"takes its values by name, as .*\(AdamW, field=value\) \(.*py:\d+\)"):
        word(AdamW, 1.0)


def test_patches_compare_and_print_by_what_they_say():
    assert patch(AdamW, lr=1) == patch(AdamW, lr=1.0)
    assert patch(AdamW, lr=1) != swap(AdamW, lr=1)
    assert len({patch(AdamW, lr=1), patch(AdamW, lr=1.0)}) == 1
    assert repr(patch(AdamW, lr=1)) == "patch(AdamW, lr=1.0)"


def test_a_call_stands_where_anything_stands():
    class Mine(Base):
        optimizer = call("torch.optim:SGD", lr=1.0, options={"a": [1, 2]})

    assert Mine().optimizer.arguments == MappingProxyType({"lr": 1.0, "options": MappingProxyType({"a": (1, 2)})})
    check(Mine(extra=Pipeline()))


def test_what_a_patch_or_swap_makes_is_checked_like_any_value():
    def few(instance: Any, attribute: Any, value: Any) -> None:
        if value.stages > 4:
            raise ValueError(f"{value.stages} stages are too many")

    class Limited(Lazy[Any]):
        pipeline: Pipeline = attrs.field(default=Pipeline(), validator=few)
        optimizer: Narrow = Narrow()

    class Patched(Limited):
        pipeline = patch(Pipeline, stages=5)

    class Narrowed(Limited):
        optimizer = swap(Wider)  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="5 stages are too many"):
        _ = Patched().pipeline
    with pytest.raises(ConfigError, match="expected Narrow, got Wider"):
        _ = Narrowed().optimizer


class Wider(Optimizer):
    pass


class Narrow(Wider):
    pass
